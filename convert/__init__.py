"""Transformer to hybrid: which blocks are swapped, their first values, and the streaming.

Installs as ``hybridize.conversion``, so that ``hybridize.convert`` is the function.
"""
