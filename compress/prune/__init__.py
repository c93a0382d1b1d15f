"""Cuts a model down to a budget: importance, search, ranking, and the cut itself."""
