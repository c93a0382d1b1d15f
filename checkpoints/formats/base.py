"""What an on-disk architecture is to hybridize: a configuration and names, both ways."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from hybridize.modeling.config import HybridConfig, parameter_shapes
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes
from hybridize.modeling.layout import ATTENTION, KINDS, MAMBA, MLP

Raw = dict[str, Any]
"""A parsed config.json."""

Sizes = TypeVar("Sizes", AttentionSizes, MambaSizes, MLPSizes)


class CannotHoldError(Exception):
    """A format has no place for something that the model has; the message says for what."""


@dataclass(frozen=True)
class Fit:
    """A model as a format holds it.

    Attributes:
        config: the model, adapted: zero biases or zero heads added, say.
        exact: whether the logits stay the same.
        notes: what a user should know about the result, a sentence each.
    """

    config: HybridConfig
    exact: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One tensor on disk: the model's tensors of which it is made, stacked by rows.

    Attributes:
        disk: its name in the checkpoint.
        ours: the names of its parts in the model, from the top.
        rows: how many rows each part has.
        shape: its shape.
    """

    disk: str
    ours: tuple[str, ...]
    rows: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Names:
    """How a format calls the model's tensors; see `Format.tensor_map`.

    Attributes:
        embedding, final_norm, head: global tensors, without ``.weight``.
        norms: per letter of the layout, the block's norm; ``{}`` is the layer's number.
        mixers: per letter of the layout, the prefix of the mixer's parameters.
        renamed: parameters of a mixer that the format calls otherwise.
        stacked: per letter, the format's name of parameters that it keeps in one tensor.
        blocks_per_layer: 2 where a layer is a mixer and an MLP.
    """

    embedding: str
    final_norm: str
    norms: dict[str, str]
    mixers: dict[str, str]
    head: str = "lm_head"
    renamed: dict[str, str] = field(default_factory=dict)
    stacked: dict[str, tuple[str, ...]] = field(default_factory=dict)
    blocks_per_layer: int = 1


class Format(ABC):
    """One on-disk architecture: one file, registered in `hybridize.checkpoints.formats`.

    Attributes:
        name: ``model_type`` in config.json.
        names: how its tensors are called.
        ignored: glob patterns of tensors that some checkpoints carry and nobody needs.
    """

    name: ClassVar[str]
    names: ClassVar[Names]
    ignored: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """Read a config.json.

        Raises:
            ValueError: it contradicts itself or needs something that no block here has.
        """

    @abstractmethod
    def fit(self, config: HybridConfig) -> Fit:
        """Adapt a model to what the format can hold.

        Raises:
            CannotHoldError: it has no place for the model.
        """

    @abstractmethod
    def from_hybrid(self, config: HybridConfig) -> Raw:
        """Return the config.json for a model that `fit` returned."""

    def extra_files(self, config: HybridConfig) -> dict[str, str]:
        """Return further files that belong beside the weights: name to text."""
        del config
        return {}

    def tensor_map(self, config: HybridConfig) -> list[Entry]:
        """Return every tensor on disk for a model that this format holds, in writing order."""
        shapes = parameter_shapes(config)
        entries: dict[str, Entry] = {}
        for ours, shape in shapes.items():
            disk = self._disk_name(ours, config.layout)
            known = entries.get(disk)
            if known is None:
                entries[disk] = Entry(disk, (ours,), (shape[0],), shape)
            else:
                rows = (*known.rows, shape[0])
                entries[disk] = replace(
                    known, ours=(*known.ours, ours), rows=rows, shape=(sum(rows), *shape[1:])
                )
        return list(entries.values())

    def _disk_name(self, ours: str, layout: str) -> str:
        names = self.names
        globals_ = {
            "model.embed_tokens.weight": f"{names.embedding}.weight",
            "model.norm.weight": f"{names.final_norm}.weight",
            "lm_head.weight": f"{names.head}.weight",
        }
        if ours in globals_:
            return globals_[ours]
        _, _, index, part, *rest = ours.split(".")  # model.blocks.7.mixer.q_proj.weight
        letter, layer = layout[int(index)], int(index) // names.blocks_per_layer
        if part == "norm":
            return f"{names.norms[letter].format(layer)}.weight"
        module, _, leaf = ".".join(rest).rpartition(".")
        for stacked, parts in names.stacked.items():
            if module in parts:
                module = stacked
        module = names.renamed.get(module, module)
        prefix = names.mixers[letter].format(layer)
        return f"{prefix}.{module}.{leaf}" if module else f"{prefix}.{leaf}"


def require(condition: bool, reason: str) -> None:
    """Raise `CannotHoldError` for ``reason`` unless ``condition``."""
    if not condition:
        raise CannotHoldError(reason)


def uniform(config: HybridConfig, sizes: type[Sizes]) -> Sizes | None:
    """Return what all blocks of a kind have in common: their sizes; None without such blocks.

    Raises:
        CannotHoldError: two of them differ.
    """
    found = {block for block in config.blocks if isinstance(block, sizes)}
    kind = {AttentionSizes: "attention", MambaSizes: "Mamba-2", MLPSizes: "MLP"}[sizes]
    require(len(found) <= 1, f"its {kind} blocks must all have the same sizes")
    return next(iter(found), None)


def require_no_multipliers(config: HybridConfig) -> None:
    """Check that the model does without Granite's multipliers."""
    multipliers = (config.embedding_multiplier, config.residual_multiplier, config.logits_scaling)
    require(multipliers == (1.0, 1.0, 1.0), "it has no multipliers")


def require_default_scale(attention: AttentionSizes) -> None:
    """Check that attention scores are scaled as Transformers usually are."""
    default = attention.scale in (None, attention.head_dim**-0.5)
    require(default, "its attention scores are scaled by head_dim ** -0.5")


def same_apart_from_window(config: HybridConfig) -> AttentionSizes:
    """Return the sizes that all attention blocks share, without a sliding window.

    Raises:
        CannotHoldError: they differ in more than the window, or there are none.
    """
    blocks = [block for block in config.blocks if isinstance(block, AttentionSizes)]
    found = {replace(block, sliding_window=None) for block in blocks}
    require(len(found) == 1, "its attention blocks must all have the same sizes")
    return found.pop()


def require_layers(config: HybridConfig) -> None:
    """Check that the model is layers of a mixer and an MLP each."""
    mixers, mlps = config.layout[::2], config.layout[1::2]
    require(
        len(mixers) == len(mlps) and set(mlps) == {MLP} and MLP not in mixers,
        f"its layers are a mixer and an MLP each, and the layout is {config.layout}",
    )


def replace_kind(config: HybridConfig, changed: BlockSizes) -> HybridConfig:
    """Give all blocks of the kind of ``changed`` these sizes."""
    blocks = [changed if type(block) is type(changed) else block for block in config.blocks]
    return config.replace_blocks(blocks)


def common_fields(source: Any) -> Raw:
    """Return what transformers' configurations and ours have under the same names."""
    names = (
        "vocab_size", "hidden_size", "max_position_embeddings", "tie_word_embeddings",
        "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "dtype",
    )  # fmt: skip
    return {name: getattr(source, name) for name in names if hasattr(source, name)}


def written_fields(config: HybridConfig) -> Raw:
    """Return the fields that every format's config.json has."""
    fields = common_fields(config)
    dtype = fields.pop("dtype", None)
    if dtype is not None:
        fields["dtype"] = str(dtype).removeprefix("torch.")
    return fields


def written_rope(config: HybridConfig) -> Raw:
    """Return RoPE in both spellings: some readers know only the older one.

    Without ``rope_theta`` at the top level, SGLang, for one, assumes 10000.
    """
    rope = dict(config.rope_parameters or {})
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    plain = rope.get("rope_type", "default") == "default"
    return {
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if plain else scaling,
    }


def letters_to(words: dict[str, str], layout: str) -> list[str]:
    """Spell a layout in a format's words, per letter of `KINDS`."""
    assert set(words) <= set(KINDS)
    return [words[letter] for letter in layout]


DECODER_NORMS = {
    ATTENTION: "model.layers.{}.input_layernorm",
    MAMBA: "model.layers.{}.input_layernorm",
    MLP: "model.layers.{}.post_attention_layernorm",
}
"""The names that Llama gave the norms of a layer."""

DECODER_MIXERS = {
    ATTENTION: "model.layers.{}.self_attn",
    MAMBA: "model.layers.{}.mamba",
    MLP: "model.layers.{}.mlp",
}
"""The names that Llama, and Bamba after it, gave the mixers of a layer."""
