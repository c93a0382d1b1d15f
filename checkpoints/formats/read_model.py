"""Building a `ModelSpec` from the fields of a config.json: the steps that formats share."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from hybridize.checkpoints.dtypes import SAFETENSORS_CODES
from hybridize.checkpoints.formats.fields import Raw
from hybridize.modeling.layers.sizes import BlockSizes
from hybridize.modeling.model_spec import SHARED_FIELDS, ModelSpec

_OLD_LAYER_TYPES = {"mamba": "linear_attention", "attention": "full_attention"}
"""Names of layers in earlier versions of transformers, and the current names."""

_OTHER_NAMES_OF_DTYPES = {"half": "float16", "float": "float32", "double": "float64"}


def build_spec(
    raw: Raw, source: SimpleNamespace, blocks: Iterable[BlockSizes], **fields: Any
) -> ModelSpec:
    """Return the model that a config.json describes.

    Args:
        raw: the content of config.json.
        source: its fields; those that `ModelSpec` has under the same name are copied.
        blocks: the sizes of every block.
        fields: further fields of `ModelSpec`.
    """
    common = {name: getattr(source, name) for name in SHARED_FIELDS if hasattr(source, name)}
    return ModelSpec(tuple(blocks), **{**common, "dtype": stated_dtype(raw), **fields})


def stated_dtype(raw: Raw) -> str | None:
    """Return torch's name of the dtype that a config.json states for the weights, if any.

    Raises:
        ValueError: the value is not the name of a dtype.
    """
    for name in ("dtype", "torch_dtype"):  # the current name, and the name in earlier versions
        value = raw.get(name)
        if value is None or value == "auto":
            continue
        text = value.removeprefix("torch.") if isinstance(value, str) else ""
        known = _OTHER_NAMES_OF_DTYPES.get(text, text)
        if known not in SAFETENSORS_CODES:
            raise ValueError(
                f"{name} is {value!r}; it must be the name of a dtype, such as bfloat16"
            )
        return known
    return None


def head_dim(source: SimpleNamespace) -> int:
    """Return the width of an attention head; the default is hidden size / heads."""
    if source.head_dim is not None:
        return int(source.head_dim)
    if source.num_attention_heads <= 0:
        raise ValueError(
            f"num_attention_heads is {source.num_attention_heads}; it must be positive"
        )
    return int(source.hidden_size) // int(source.num_attention_heads)


def num_kv_heads(source: SimpleNamespace) -> int:
    """Return the number of key/value heads; the default is the number of query heads."""
    given = source.num_key_value_heads
    return int(source.num_attention_heads if given is None else given)


def layer_kinds(kinds: Sequence[str], known: Sequence[str], count: int) -> list[str]:
    """Return the kinds of all layers by transformers' current names.

    Args:
        kinds: ``layer_types`` of a config.json.
        known: the kinds that the architecture has.
        count: the number of layers.

    Raises:
        ValueError: a kind is not known, or there are more or fewer kinds than layers.
    """
    result = [_OLD_LAYER_TYPES.get(kind, kind) for kind in kinds]
    unknown = sorted(set(result) - set(known))
    if unknown:
        raise ValueError(f"layer_types has {unknown[0]!r}; supported are {', '.join(known)}")
    if len(result) != count:
        raise ValueError(f"layer_types has {len(result)} layers and num_hidden_layers is {count}")
    return result
