"""Faster implementations in plain torch. They run on CPUs, and on GPUs without Triton."""
