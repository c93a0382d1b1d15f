"""The hybrid model: layout, sizes, configuration, layers, caches, forward pass, decoding.

Without torch and transformers:

- `layout`, `model_spec`, `costs`: the blocks of a model, its sizes, and the memory of its cache.
- `layers.kinds`, `layers.sizes`: the kinds of blocks, and the shapes of their parameters.
- `rope_parameters`: the types of rotary position embeddings (RoPE) and their checks.

With torch and transformers:

- `config`, `model`, `block`: the configuration, the model and its residual blocks.
- ``layers/``: the mixers (attention, Mamba-2, MLP), norms and RoPE.
- ``cache/``: keys, values and states that the model keeps between calls.
- `masks`: attention masks, and how padding stays without effect.
- `packed_sequences`: several sequences in one row of the batch.
- `decoding`: greedy decoding in steps that a CUDA graph can replay.
- `materialize`, `devices`: modules from given weights; names of devices and dtypes.
"""
