"""The operations as Triton kernels: a CUDA device and `pip install` are all they need.

Under ``TRITON_INTERPRET=1`` they run on the CPU, slowly, for tests.
"""
