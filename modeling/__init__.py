"""What a hybrid is: its layout, sizes, configuration, layers, caches, and the model."""
