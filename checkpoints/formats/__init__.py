"""The on-disk architectures that hybridize reads and writes: one file per ``model_type``.

To add one, write a file here and add one line to ``_ALL``. Nothing here imports torch or
transformers.

- `config_from_json` finds the format of a config.json, and has it read the file.
- `choose_format` chooses the format of a result.
- `base` has the class `Format`, `fields` the types and defaults of config.json's fields.
- `rope` reads and writes RoPE parameters; `read_model` has what else the formats share.
"""

from pathlib import Path
from typing import Any

from hybridize.checkpoints.files import CONFIG
from hybridize.checkpoints.formats.bamba import Bamba
from hybridize.checkpoints.formats.base import CannotStoreError, Entry, Fit, Format
from hybridize.checkpoints.formats.granitemoehybrid import GraniteMoeHybrid
from hybridize.checkpoints.formats.hybridize import HybridizeFormat
from hybridize.checkpoints.formats.llama import Llama
from hybridize.checkpoints.formats.mamba2 import Mamba2Format
from hybridize.checkpoints.formats.mistral import Mistral
from hybridize.checkpoints.formats.nemotron_h import NemotronH
from hybridize.checkpoints.formats.qwen2 import Qwen2
from hybridize.checkpoints.formats.qwen3 import Qwen3
from hybridize.checkpoints.formats.tensor_names import other_names
from hybridize.checkpoints.formats.unknown_fields import check_fields
from hybridize.checkpoints.reader import CheckpointReader
from hybridize.checkpoints.special_floats import decode_special_floats
from hybridize.errors import InputError
from hybridize.modeling.model_spec import ModelSpec

_ALL = (
    GraniteMoeHybrid(),
    Bamba(),
    NemotronH(),
    Mamba2Format(),
    HybridizeFormat(),
    Llama(),
    Mistral(),
    Qwen2(),
    Qwen3(),
)

_MAX_LAYERS = 10_000  # without a limit, a mistyped number would take hours

FORMATS: dict[str, Format] = {known.name: known for known in _ALL}
"""All formats by ``model_type``: the hybrids, the most widely supported first; then the others."""

HYBRID_FORMATS = tuple(known.name for known in _ALL if known.stores_mamba)
"""The formats that a conversion can write, in the order in which ``format="auto"`` tries them."""

__all__ = [
    "FORMATS",
    "HYBRID_FORMATS",
    "CannotStoreError",
    "Entry",
    "Fit",
    "Format",
    "config_from_json",
    "read_config",
]


def read_config(reader: CheckpointReader, *, quantized: bool = False) -> tuple[Format, ModelSpec]:
    """Understand a checkpoint's config.json.

    Types and ranges are checked here. `hybridize.checkpoints.config_check` has transformers check
    the file as well, before anything is computed.

    Args:
        reader: the checkpoint.
        quantized: accept a quantized checkpoint; see `hybridize.checkpoints.quantization`.

    Raises:
        InputError: ``model_type`` is missing or unknown, the checkpoint is quantized, or the
            configuration contradicts itself.
    """
    format_, spec = config_from_json(reader.config, reader.directory / CONFIG, quantized=quantized)
    reader.rename(other_names(reader.names, format_.names, tied=spec.tie_word_embeddings))
    return format_, spec


def config_from_json(
    raw: dict[str, Any], path: Path, *, quantized: bool = False
) -> tuple[Format, ModelSpec]:
    """Understand the content of a config.json without the rest of the checkpoint.

    Args:
        raw: the content.
        path: config.json; error messages name it.
        quantized: see `read_config`.

    Raises:
        InputError: see `read_config`.
    """
    model_type = raw.get("model_type")
    found = FORMATS.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise InputError(
            f"{path}: model_type {model_type!r} is not known; "
            f"known are {', '.join(sorted(FORMATS))}"
        )
    if raw.get("quantization_config") and not quantized:
        raise InputError(
            f"{path}: the checkpoint is quantized; use the unquantized checkpoint, and quantize "
            "the result"
        )
    layers = raw.get("num_hidden_layers")
    if isinstance(layers, int) and layers > _MAX_LAYERS:
        raise InputError(f"{path}: num_hidden_layers is {layers}; the limit is {_MAX_LAYERS}")
    try:
        spec = found.to_spec(decode_special_floats(raw))
        check_fields(found, decode_special_floats(raw), path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
        # Values that the checks do not cover, such as integers too large for a float.
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error
    return found, spec
