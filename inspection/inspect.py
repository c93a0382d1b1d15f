"""`hybridize inspect`: the blocks of a checkpoint, their sizes, and the memory of its cache.

Without ``states``, only config.json and the headers of the weight files are read, and neither torch
nor transformers is imported.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.checkpoints import read_provenance
from hybridize.checkpoints.dtypes import itemsize
from hybridize.checkpoints.formats import FORMATS, HYBRID_FORMATS, CannotStoreError, read_config
from hybridize.checkpoints.formats.unknown_fields import ignored_fields
from hybridize.checkpoints.header_reader import open_headers
from hybridize.checkpoints.quantization import Quantization
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.inspection.config import InspectConfig
from hybridize.modeling.costs import CacheCost, cache_cost
from hybridize.modeling.layers.kinds import LAYER_KINDS
from hybridize.modeling.model_spec import ModelSpec, parameter_shapes
from hybridize.options import takes_options

if TYPE_CHECKING:
    from hybridize.inspection.state_norms import StateReport

CONTEXTS = (4 * 1024, 32 * 1024, 128 * 1024, 1024 * 1024)
"""The context lengths for which the size of the cache is computed by default, in tokens."""


@dataclass(frozen=True)
class KindSummary:
    """All blocks of one kind.

    Attributes:
        kind: the name of the kind.
        count: the number of blocks.
        parameters: the number of their parameters.
        sizes: a description of each different size.
    """

    kind: str
    count: int
    parameters: int
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`.

    Attributes:
        directory: the checkpoint.
        format: its on-disk architecture.
        layout: one letter per block.
        hidden_size, vocab_size, max_position_embeddings: as in config.json.
        dtypes: bytes of weights by dtype.
        quantization: the scheme that `hybridize.quantize` used, or how another program quantized
            the weights; empty for weights that are not quantized.
        parameters: the number of parameters; tied weights count once.
        kinds: a summary for each kind of block, then for ``embeddings`` and ``norms``.
        cache: the size of the cache at each context length.
        obstacles: for each hybrid format, why it cannot store the model; empty if it can.
        ignored_fields: the fields of config.json that neither transformers nor hybridize knows.
        records: the commands that made the checkpoint; see `checkpoints.provenance`.
        states: the measurements on a text; None if no text was given.
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
    obstacles: dict[str, str]
    ignored_fields: tuple[str, ...]
    records: tuple[dict[str, Any], ...]
    states: "StateReport | None" = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        values = asdict(self) | {"directory": str(self.directory)}
        if self.states is None:
            del values["states"]
        return values


@takes_options(InspectConfig)
def inspect(
    model: str | Path, config: InspectConfig, *, contexts: Sequence[int] = CONTEXTS
) -> Inspection:
    """Describe a checkpoint without loading its weights, unless ``states`` is given.

    Args:
        model: a directory or a hub id.
        config: the options; you can also give each option as a keyword.
        contexts: context lengths in tokens for which the size of the cache is computed.

    Raises:
        InputError: the checkpoint cannot be read, or its tensors do not fit its config.json.
    """
    with open_headers(model) as reader:
        directory = reader.directory
        format_, spec = read_config(reader, quantized=True)
        tensors = CheckpointTensors(reader, format_, spec)
        dtypes: dict[str, int] = {}
        for name in reader.names:
            dtypes[reader.dtype(name)] = dtypes.get(reader.dtype(name), 0) + reader.nbytes(name)
        element = itemsize(tensors.dtype("model.embed_tokens.weight"))
    records = tuple(read_provenance(directory))
    return Inspection(
        directory=directory,
        format=format_.name,
        layout=spec.layout,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        max_position_embeddings=spec.max_position_embeddings,
        dtypes=dtypes,
        quantization=_describe_quantization(tensors.quantization, records),
        parameters=sum(prod(shape) for shape in parameter_shapes(spec).values()),
        kinds=_kinds(spec),
        cache=tuple(cache_cost(spec, context, element) for context in contexts),
        obstacles={name: _obstacle(name, spec) for name in HYBRID_FORMATS},
        ignored_fields=ignored_fields(format_, reader.config),
        records=records,
        states=_measure_states(model, config),
    )


def _describe_quantization(
    quantization: Quantization | None, records: Sequence[dict[str, Any]]
) -> str:
    if quantization is None:
        return ""
    for record in reversed(records):
        match record:
            case {"command": "quantize", "options": {"scheme": str(scheme)}}:
                return scheme
    return quantization.describe()


def _measure_states(model: str | Path, config: InspectConfig) -> "StateReport | None":
    """Run the model on a text if ``states`` is given; write a plot if ``plot`` is given."""
    if config.states is None:
        return None
    from hybridize.inspection.state_norms import inspect_states
    from hybridize.inspection.state_norms_plot import draw_states
    from hybridize.output_files import check_output_file, write_atomically

    plot = None if config.plot is None else Path(config.plot)
    if plot is not None:
        check_output_file(plot, force=config.force)
    report = inspect_states(model, config.states, tokens=config.states_tokens)
    if plot is not None:
        write_atomically(plot, draw_states(report))
    return report


def _kinds(spec: ModelSpec) -> tuple[KindSummary, ...]:
    hidden = spec.hidden_size
    result = []
    for letter, kind in LAYER_KINDS.items():
        blocks = [block for block in spec.blocks if block.letter == letter]
        if blocks:
            count = sum(prod(shape) for b in blocks for shape in b.shapes(hidden).values())
            sizes = tuple(dict.fromkeys(block.describe() for block in blocks))
            result.append(KindSummary(kind.title, len(blocks), count, sizes))
    shapes = parameter_shapes(spec)
    tables = [name for name in shapes if "embed" in name or "lm_head" in name]
    tied = "tied" if spec.tie_word_embeddings else "untied"
    embeddings = sum(prod(shapes[name]) for name in tables)
    result.append(KindSummary("embeddings", len(tables), embeddings, (tied,)))
    norms = len(spec.layout) + 1
    result.append(KindSummary("norms", norms, norms * hidden, ()))
    return tuple(result)


def _obstacle(name: str, spec: ModelSpec) -> str:
    """Return why a format cannot store the model exactly; empty if it can."""
    try:
        fit = FORMATS[name].fit(spec)
    except CannotStoreError as error:
        return str(error)
    return "" if fit.exact else "; ".join(fit.notes)
