"""The caches of a hybrid: what decoding remembers between calls."""
