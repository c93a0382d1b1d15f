"""Conversion of a Transformer into a hybrid: which blocks are swapped, and their first values.

This folder installs as ``hybridize.conversion``, because ``hybridize.convert`` is the function.
"""
