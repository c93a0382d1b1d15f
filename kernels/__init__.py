"""The operations a hybrid is made of: one public signature each, several implementations.

Being filled in: see the signatures in the brief.
"""
