"""The operations in their simplest form, for any floating dtype, float64 included."""
