"""The base class of on-disk architectures: reading and writing config.json, naming tensors.

`Format.fit` decides whether a model can be written in a format. The ``require…`` functions are the
checks that several formats share.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from hybridize.checkpoints.formats.fields import Fields, Raw
from hybridize.modeling.layers.kinds import ATTENTION, LAYER_KINDS, MAMBA, MLP
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec, attention_blocks, parameter_shapes

Sizes = TypeVar("Sizes", AttentionSizes, MambaSizes, MLPSizes)


class CannotStoreError(Exception):
    """A format cannot store a model; the message says which property of the model it lacks."""


@dataclass(frozen=True)
class Fit:
    """A model, adapted to a format.

    Attributes:
        spec: the adapted model, for example with zero biases or zero heads.
        exact: whether the logits stay the same.
        notes: limitations of the result that a user should know, one sentence each.
    """

    spec: ModelSpec
    exact: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One tensor on disk: one parameter of the model, or several stacked by rows.

    Attributes:
        disk: its name in the checkpoint.
        parameters: the names of these parameters in the model, in the order of their rows.
        rows: the number of rows of each parameter.
        shape: the shape of the tensor.
    """

    disk: str
    parameters: tuple[str, ...]
    rows: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Names:
    """The names that a format gives to the model's tensors; see `Format.tensor_map`.

    Attributes:
        embedding, final_norm, head: the tensors outside blocks, without ``.weight``.
        norms: the norm of a block, by letter of the layout; ``{}`` is the index of the layer.
        mixers: the prefix of the mixer's parameters, by letter of the layout.
        renamed: the format's names of modules in a mixer, by the model's names.
        stacked: the modules that one tensor contains, by the format's name of the tensor.
        blocks_per_layer: 2 if a layer is a mixer and an MLP.
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
    """One on-disk architecture; each has its own file, registered in `formats/__init__.py`.

    Attributes:
        name: ``model_type`` in config.json.
        fields: the fields of config.json that are read, with transformers' types and defaults.
        also_read: the names of further fields that are read.
        no_influence: the names of fields that change no logit of the architecture.
        required: fields of which only these values are supported.
        own: whether the architecture is hybridize's own.
        names: the names of its tensors.
        stores_mamba: whether it can store Mamba-2 blocks; conversions write only such formats.
    """

    name: ClassVar[str]
    fields: ClassVar[Fields]
    also_read: ClassVar[tuple[str, ...]] = ()
    no_influence: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({})
    own: ClassVar[bool] = False
    names: ClassVar[Names]
    stores_mamba: ClassVar[bool] = True

    @abstractmethod
    def to_spec(self, raw: Raw) -> ModelSpec:
        """Understand a config.json.

        Raises:
            ValueError: it contradicts itself, or describes layers that are not supported.
        """

    @abstractmethod
    def fit(self, spec: ModelSpec) -> Fit:
        """Adapt a model to what the format can store.

        Raises:
            CannotStoreError: the format cannot store the model.
        """

    @abstractmethod
    def to_raw(self, spec: ModelSpec) -> Raw:
        """Return the config.json of a model that `fit` has adapted."""

    def unread(self, raw: Raw) -> Raw:
        """Return the fields of a config.json that are not read, for a result in the same format.

        The others could contradict the result: a field may have two spellings, of which `to_raw`
        writes only one.
        """
        read = {*self.fields, *self.also_read}
        return {name: value for name, value in raw.items() if name not in read}

    def extra_files(self, spec: ModelSpec) -> dict[str, str]:
        """Return further files of the checkpoint, text by name."""
        del spec
        return {}

    def tensor_map(self, spec: ModelSpec) -> list[Entry]:
        """Return every tensor on disk of a model in this format, in the order of writing."""
        entries: dict[str, Entry] = {}
        for parameter, shape in parameter_shapes(spec).items():
            disk = self._disk_name(parameter, spec.layout)
            known = entries.get(disk)
            if known is None:
                entries[disk] = Entry(disk, (parameter,), (shape[0],), shape)
            else:
                rows = (*known.rows, shape[0])
                parameters = (*known.parameters, parameter)
                stacked = (sum(rows), *shape[1:])
                entries[disk] = replace(known, parameters=parameters, rows=rows, shape=stacked)
        return list(entries.values())

    def norm_names(self, spec: ModelSpec) -> list[str]:
        """Return the names of all norms: of every block, in order, and the last one."""
        count = len(spec.layout)
        norms = [*(f"model.blocks.{index}.norm" for index in range(count)), "model.norm"]
        weights = [self._disk_name(f"{norm}.weight", spec.layout) for norm in norms]
        return [name.removesuffix(".weight") for name in weights]

    def _disk_name(self, parameter: str, layout: str) -> str:
        names = self.names
        globals_ = {
            "model.embed_tokens.weight": f"{names.embedding}.weight",
            "model.norm.weight": f"{names.final_norm}.weight",
            "lm_head.weight": f"{names.head}.weight",
        }
        if parameter in globals_:
            return globals_[parameter]
        _, _, index, part, *rest = parameter.split(".")  # model.blocks.7.mixer.q_proj.weight
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
    """Raise `CannotStoreError` with ``reason`` unless ``condition`` is true."""
    if not condition:
        raise CannotStoreError(reason)


def uniform(spec: ModelSpec, sizes: type[Sizes]) -> Sizes | None:
    """Return the sizes that all blocks of a kind share, or None if there are no such blocks.

    Raises:
        CannotStoreError: two of them differ.
    """
    found = {block for block in spec.blocks if isinstance(block, sizes)}
    kind = {AttentionSizes: "attention", MambaSizes: "Mamba-2", MLPSizes: "MLP"}[sizes]
    require(len(found) <= 1, f"the {kind} blocks must all have the same sizes")
    return next(iter(found), None)


def require_no_multipliers(spec: ModelSpec) -> None:
    """Check that the model has none of Granite's multipliers."""
    multipliers = (spec.embedding_multiplier, spec.residual_multiplier, spec.logits_scaling)
    require(
        multipliers == (1.0, 1.0, 1.0),
        "the format has no multipliers of embeddings, residuals or logits",
    )


def require_default_scale(attention: AttentionSizes) -> None:
    """Check that attention scores have the usual scale."""
    default = attention.scale in (None, attention.head_dim**-0.5)
    require(default, "the format scales attention scores by head_dim ** -0.5")


def require_full_rotation(spec: ModelSpec) -> None:
    """Check that RoPE rotates all channels of a head."""
    factor = spec.rope.get("partial_rotary_factor", 1.0)
    require(factor == 1.0, "the format's RoPE rotates whole heads")


def uniform_except_window(spec: ModelSpec) -> AttentionSizes:
    """Return the sizes that all attention blocks share, without a sliding window.

    Raises:
        CannotStoreError: they differ in more than the window, or there are none.
    """
    found = {replace(block, sliding_window=None) for block in attention_blocks(spec.blocks)}
    require(len(found) == 1, "the attention blocks must all have the same sizes")
    return found.pop()


def require_layers(spec: ModelSpec) -> None:
    """Check that mixers and MLPs alternate: every layer must have one of each."""
    mixers, mlps = spec.layout[::2], spec.layout[1::2]
    require(
        len(mixers) == len(mlps) and set(mlps) == {MLP} and MLP not in mixers,
        f"every layer must have a mixer and an MLP, but the layout is {spec.layout}",
    )


def replace_kind(spec: ModelSpec, changed: BlockSizes) -> ModelSpec:
    """Give all blocks of the kind of ``changed`` these sizes."""
    return spec.replace_blocks(
        changed if type(block) is type(changed) else block for block in spec.blocks
    )


def written_fields(spec: ModelSpec) -> Raw:
    """Return the fields that the config.json of every format has under the same names."""
    names = (
        "vocab_size", "hidden_size", "max_position_embeddings", "tie_word_embeddings",
        "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache",
    )  # fmt: skip
    dtype = {} if spec.dtype is None else {"dtype": spec.dtype}
    return {name: getattr(spec, name) for name in names} | dtype


def letters_to(words: dict[str, str], layout: str) -> list[str]:
    """Return the format's word for each block.

    Args:
        words: the word for each kind, by letter of `LAYER_KINDS`.
        layout: one letter per block.
    """
    assert set(words) <= set(LAYER_KINDS)
    return [words[letter] for letter in layout]


DECODER_NORMS = {
    ATTENTION: "model.layers.{}.input_layernorm",
    MAMBA: "model.layers.{}.input_layernorm",
    MLP: "model.layers.{}.post_attention_layernorm",
}
"""Llama's names of the norms of a layer."""

DECODER_MIXERS = {
    ATTENTION: "model.layers.{}.self_attn",
    MAMBA: "model.layers.{}.mamba",
    MLP: "model.layers.{}.mlp",
}
"""The names of the mixers of a layer in Llama and Bamba."""
