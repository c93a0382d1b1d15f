"""Here so that pytest lets the folders below import this one's helpers, such as ``hybrids``."""
