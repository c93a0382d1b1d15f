"""Which of a checkpoint's tensors can be quantized, and how others are told to be left alone."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hybridize.checkpoints.formats import Entry, Format
from hybridize.compress.quantize.schemes import Scheme
from hybridize.modeling.config import HybridConfig

_LINEAR = re.compile(r"model\.blocks\.(\d+)\.mixer\.(q|k|v|o|in|out|gate|up|down)_proj\.weight")
_ON_DISK = re.compile(r"(?:.*\.)?(layers|blocks)\.(\d+)\.(\w+)\.(\w+)\.weight")
# vLLM calls the Mamba-2 mixer of Granite and Bamba otherwise than their checkpoints do.
_ALIASES = {"mamba": "(mamba|mixer)"}


@dataclass(frozen=True)
class Target:
    """A linear layer of a block, as it lies on disk.

    Attributes:
        entry: its weight.
        block: the block's place in the layout.
        obstacle: why the scheme cannot hold it; empty if it can.
    """

    entry: Entry
    block: int
    obstacle: str


def find_targets(format_: Format, config: HybridConfig, scheme: Scheme) -> list[Target]:
    """Return the linear layers of all blocks.

    Embeddings, the output head, norms, the convolution, ``A_log``, ``D`` and ``dt_bias`` are none.
    """
    targets = []
    for entry in format_.tensor_map(config):
        found = _LINEAR.fullmatch(entry.ours[0])
        if found:
            targets.append(Target(entry, int(found[1]), scheme.obstacle(entry)))
    return targets


def ignore_patterns(targets: Sequence[Target], kept: Iterable[int]) -> list[str]:
    """Return compressed-tensors' ``ignore`` for what stays as it is.

    Patterns begin with ``re:`` and match module names from their start, in transformers and in
    vLLM, which has other prefixes, merges layers (``qkv_proj``) and calls Mamba mixers otherwise.

    Args:
        targets: see `find_targets`.
        kept: blocks that stay.
    """
    kept = set(kept)
    layers: dict[tuple[str, str, str], list[int]] = {}
    for target in targets:
        found = _ON_DISK.fullmatch(target.entry.disk)
        assert found is not None, target.entry.disk
        container, layer, mixer, module = found.groups()
        if target.block in kept:
            module = ".*"
        elif not target.obstacle:
            continue
        places = layers.setdefault((container, mixer, module), [])
        if int(layer) not in places:
            places.append(int(layer))
    patterns = ["lm_head"]
    for (container, mixer, module), places in layers.items():
        numbers, mixer = "|".join(map(str, places)), _ALIASES.get(mixer, mixer)
        patterns.append(rf"re:.*\b{container}\.({numbers})\.{mixer}\.{module}$")
    return patterns
