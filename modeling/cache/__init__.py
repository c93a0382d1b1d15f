"""The caches of a hybrid: keys, values and states that the model keeps between calls.

- `hybrid.HybridCache`: the ordinary cache, and the interface that the model uses.
- `compact.CompactCache`: stores keys, values and SSM states in FP8 or bfloat16.
- `static.StaticHybridCache`: fixed memory addresses, for CUDA graphs.
- `segment.SegmentCache`: for training on long sequences segment by segment.
"""
