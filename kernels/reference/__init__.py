"""The operations in their plainest form: any floating dtype, float64 included, no tricks."""
