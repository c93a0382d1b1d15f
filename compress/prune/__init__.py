"""Making a model smaller: which parts matter, which shapes fit a budget, and the cut itself."""
