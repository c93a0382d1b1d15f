"""How the bundled checkpoint, its exam and its text were made. Not installed with hybridize."""
