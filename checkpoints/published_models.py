"""The sizes of published models, so that `bench --predict` needs no checkpoint.

Sources: the models' config.json files, and table 1 and section 4 of Nemotron-H (arXiv 2504.03624).
"""

from pathlib import Path

from hybridize.checkpoints.files import read_json_object
from hybridize.checkpoints.formats import FORMATS, Format, config_from_json
from hybridize.checkpoints.hub import resolve_config
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec

Shape = tuple[Format, ModelSpec]


def published(name: str) -> Shape | None:
    """Return the shape of a published model; None if ``name`` is not in `SHAPES`."""
    make = SHAPES.get(name)
    return None if make is None else make()


def find_shape(model: str | Path) -> Shape:
    """Return the format and the shape of a published model, a config.json, or a checkpoint.

    Weights are not needed.

    Args:
        model: a name in `SHAPES`, a config.json, a directory, or a hub id.

    Raises:
        InputError: no such model was found, or its config.json cannot be understood.
    """
    known = published(str(model))
    if known is not None:
        return known
    try:
        path = resolve_config(model)
    except InputError as error:
        raise InputError(f"{error}; published shapes: {', '.join(SHAPES)}") from error
    if path.is_dir():
        path = path / "config.json"
    return config_from_json(read_json_object(path), path)


def _llama(layers: int, hidden: int, heads: int, ffn: int) -> Shape:
    pair: list[BlockSizes] = [AttentionSizes(heads, 8, 128), MLPSizes(ffn)]
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    return FORMATS["llama"], ModelSpec(
        tuple(pair * layers),
        vocab_size=128256,
        hidden_size=hidden,
        rope_parameters=rope,
        max_position_embeddings=131072,
    )


def _nemotron_h(
    hidden: int, ffn: int, counts: tuple[int, int, int], mamba: MambaSizes, heads: int
) -> Shape:
    """Return a Nemotron-H whose blocks of each kind are evenly spaced.

    Args:
        hidden: the hidden size.
        ffn: the width of the MLPs.
        counts: the number of Mamba-2, MLP and attention blocks.
        mamba: the sizes of the Mamba-2 blocks.
        heads: the number of query heads.
    """
    of_kind: list[list[BlockSizes]] = [
        [mamba] * counts[0],
        [MLPSizes(ffn, "relu2", gated=False)] * counts[1],
        [AttentionSizes(heads, 8, 128, rope=False)] * counts[2],
    ]
    positioned = [
        ((number + 0.5) / len(blocks), block)
        for blocks in of_kind
        for number, block in enumerate(blocks)
    ]
    blocks = [block for _, block in sorted(positioned, key=lambda pair: pair[0])]
    return FORMATS["nemotron_h"], ModelSpec(
        tuple(blocks), vocab_size=131072, hidden_size=hidden, max_position_embeddings=8192
    )


SHAPES = {
    "llama-3.1-8b": lambda: _llama(32, 4096, 32, 14336),
    "llama-3.1-70b": lambda: _llama(80, 8192, 64, 28672),
    "nemotron-h-8b": lambda: _nemotron_h(4096, 21504, (24, 24, 4), MambaSizes(128, 64, 8, 128), 32),
    "nemotron-h-47b": lambda: _nemotron_h(
        8192, 30720, (44, 49, 5), MambaSizes(256, 64, 8, 256), 64
    ),
    "nemotron-h-56b": lambda: _nemotron_h(
        8192, 32768, (54, 54, 10), MambaSizes(256, 64, 8, 256), 64
    ),
}
"""For each published model, by name, a function that returns its format and its shape."""
