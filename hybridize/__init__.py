"""hybridize."""
