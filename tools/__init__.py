"""Scripts for the maintainers of hybridize."""
