"""Models as graphs that other runtimes execute."""
