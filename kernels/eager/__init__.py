"""The operations that plain torch can do much faster than the reference does."""
