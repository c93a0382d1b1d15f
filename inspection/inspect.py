"""`hybridize inspect`: what a checkpoint is made of and what it will cost to run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from hybridize.checkpoints import CheckpointReader, read_provenance
from hybridize.checkpoints.formats import FORMATS, HYBRID_FORMATS, CannotHoldError, read_config
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.modeling.config import HybridConfig, parameter_shapes
from hybridize.modeling.costs import CacheCost, cache_cost
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.layout import KINDS

CONTEXTS = (4 * 1024, 32 * 1024, 128 * 1024, 1024 * 1024)
_KIND_NAMES = {"*": "attention", "M": "Mamba-2", "-": "MLP"}


@dataclass(frozen=True)
class KindSummary:
    """All blocks of one kind: how many, their parameters, and their sizes in words."""

    kind: str
    count: int
    parameters: int
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        directory: the checkpoint.
        format: its on-disk architecture.
        layout: its pattern.
        dtypes: bytes of weights by dtype.
        quantization: the scheme of its FP8 weights; empty where there are none.
        parameters: count, tied weights once.
        kinds: per kind of block; then ``embeddings`` and ``norms``.
        cache: cost per context length.
        holds: per stock format: why it cannot hold the model, or an empty string.
        steps: what hybridize did to it, command by command.
    """

    directory: Path
    format: str
    layout: str
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    dtypes: dict[str, int]
    quantization: str
    parameters: int
    kinds: tuple[KindSummary, ...]
    cache: tuple[CacheCost, ...]
    holds: dict[str, str]
    steps: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as JSON can hold them."""
        return asdict(self) | {"directory": str(self.directory)}


def inspect(model: str | Path, *, contexts: Sequence[int] = CONTEXTS) -> Inspection:
    """Look at a checkpoint without loading it.

    Args:
        model: a directory or a hub id.
        contexts: lengths in tokens at which to work out the cache's size.

    Raises:
        InputError: the checkpoint cannot be read, or its tensors do not fit its config.json.
    """
    directory = resolve(model)
    with CheckpointReader(directory) as reader:
        format_, config = read_config(reader, quantized=True)
        tensors = CheckpointTensors(reader, format_, config)
        dtypes: dict[str, int] = {}
        for name in reader.names:
            dtype = str(reader.dtype(name)).removeprefix("torch.")
            dtypes[dtype] = dtypes.get(dtype, 0) + reader.nbytes(name)
        width = tensors.dtype("model.embed_tokens.weight").itemsize
    return Inspection(
        directory=directory,
        format=format_.name,
        layout=config.layout,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        dtypes=dtypes,
        quantization="" if tensors.quantization is None else tensors.quantization.scheme,
        parameters=sum(prod(shape) for shape in parameter_shapes(config).values()),
        kinds=_kinds(config),
        cache=tuple(cache_cost(config, context, width) for context in contexts),
        holds={name: _reason(name, config) for name in HYBRID_FORMATS},
        steps=tuple(read_provenance(directory)),
    )


def _kinds(config: HybridConfig) -> tuple[KindSummary, ...]:
    hidden = config.hidden_size
    result = []
    for letter in KINDS:
        blocks = [b for b, kind in zip(config.blocks, config.layout, strict=True) if kind == letter]
        if blocks:
            count = sum(prod(shape) for b in blocks for shape in b.shapes(hidden).values())
            sizes = tuple(dict.fromkeys(_words(block) for block in blocks))
            result.append(KindSummary(_KIND_NAMES[letter], len(blocks), count, sizes))
    shapes = parameter_shapes(config)
    tables = [name for name in shapes if "embed" in name or "lm_head" in name]
    tied = "tied" if config.tie_word_embeddings else "untied"
    embeddings = sum(prod(shapes[name]) for name in tables)
    result.append(KindSummary("embeddings", len(tables), embeddings, (tied,)))
    norms = len(config.layout) + 1
    result.append(KindSummary("norms", norms, norms * hidden, ()))
    return tuple(result)


def _words(block: Any) -> str:
    if isinstance(block, AttentionSizes):
        parts = [f"{block.num_heads} heads × {block.head_dim}", f"{block.num_kv_heads} KV heads"]
        parts += ["query/key norm"] if block.qk_norm else []
        parts += ["biases"] if block.qkv_bias or block.out_bias else []
        parts += [] if block.rope else ["no RoPE"]
        parts += [f"window {block.sliding_window}"] if block.sliding_window else []
    elif isinstance(block, MambaSizes):
        parts = [f"{block.num_heads} heads × {block.head_dim}", f"state {block.d_state}"]
        parts += [f"{block.n_groups} groups"]
    else:
        parts = [
            f"width {block.intermediate_size}",
            f"{'gated ' if block.gated else ''}{block.activation}",
        ]
    return ", ".join(parts)


def _reason(name: str, config: HybridConfig) -> str:
    try:
        fit = FORMATS[name].fit(config)
    except CannotHoldError as error:
        return str(error)
    return "" if fit.exact else "; ".join(fit.notes)
