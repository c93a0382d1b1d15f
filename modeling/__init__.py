"""What a hybrid is: its layout, its configuration, the model, and how it lies on disk."""
