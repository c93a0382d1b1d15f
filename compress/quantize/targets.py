"""The linear layers that a scheme can quantize, and the patterns of all other modules."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hybridize.checkpoints.formats import Entry, Format
from hybridize.compress.quantize.schemes.base import Scheme
from hybridize.modeling.model_spec import ModelSpec

_LINEAR = re.compile(r"model\.blocks\.(\d+)\.mixer\.(q|k|v|o|in|out|gate|up|down)_proj\.weight")
_ON_DISK = re.compile(r"(?:.*\.)?(layers|blocks)\.(\d+)\.(\w+)\.(\w+)\.weight")
# vLLM has another name for the Mamba-2 mixer than the checkpoints of Granite and Bamba.
_ALIASES = {"mamba": "(mamba|mixer)"}


@dataclass(frozen=True)
class Target:
    """A linear layer of a block on disk. The format may stack several linear layers of the model.

    Attributes:
        entry: its weight.
        block: the block's index in the layout.
        obstacle: why the scheme cannot quantize the layer; empty if it can.
    """

    entry: Entry
    block: int
    obstacle: str


def find_targets(format_: Format, config: ModelSpec, scheme: Scheme) -> list[Target]:
    """Return the linear layers of all blocks, also those that the scheme cannot quantize.

    Embeddings, the output head, norms, the convolution, ``A_log``, ``D`` and ``dt_bias`` are not
    targets.
    """
    targets = []
    for entry in format_.tensor_map(config):
        match = _LINEAR.fullmatch(entry.parameters[0])
        if match:
            targets.append(Target(entry, int(match[1]), scheme.obstacle(entry)))
    return targets


def ignore_patterns(targets: Sequence[Target], kept: Iterable[int]) -> list[str]:
    """Return compressed-tensors' ``ignore``: the modules that are not quantized.

    The patterns begin with ``re:`` and match full module names, in transformers and in vLLM. vLLM
    has other prefixes, merges layers (``qkv_proj``) and has other names for Mamba-2 mixers.

    Args:
        targets: see `find_targets`.
        kept: the blocks that are not quantized.
    """
    kept = set(kept)
    layers: dict[tuple[str, str, str], list[int]] = {}
    for target in targets:
        match = _ON_DISK.fullmatch(target.entry.disk)
        assert match is not None, target.entry.disk
        container, layer, mixer, module = match.groups()
        if target.block in kept:
            module = ".*"
        elif not target.obstacle:
            continue
        numbers = layers.setdefault((container, mixer, module), [])
        if int(layer) not in numbers:
            numbers.append(int(layer))
    patterns = ["lm_head"]
    for (container, mixer, module), numbers in layers.items():
        choices, mixer = "|".join(map(str, numbers)), _ALIASES.get(mixer, mixer)
        patterns.append(rf"re:.*\b{container}\.({choices})\.{mixer}\.{module}$")
    return patterns
