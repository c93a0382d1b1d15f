"""Inspecting checkpoints.

- `inspect`: blocks, sizes, the memory of the cache, and the formats that can store the model.
- `verify`: whether a checkpoint is complete and undamaged.
- `state_norms`: how long SSM states remember, and how far back attention looks.
"""
