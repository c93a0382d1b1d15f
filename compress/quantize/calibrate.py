"""How large the inputs of linear layers become on some text."""

import torch
from torch import nn

from hybridize.checkpoints.blockwise import BlockwiseModel
from hybridize.checkpoints.tensors import Tensors
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig

_TOKENS_AT_ONCE = 4096


@torch.no_grad()
def input_maxima(
    tensors: Tensors, config: HybridConfig, dataset: PackedDataset, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the largest magnitude that each linear layer meets, ``(1,)``, by its weight's name.

    Memory holds one block, and the residual stream of all the text.

    Raises:
        InputError: a layer meets nothing but zeros, or something that is not finite.
    """
    model = BlockwiseModel(tensors, config, device)
    batches = torch.arange(len(dataset)).split(max(1, _TOKENS_AT_ONCE // dataset.length))
    rows = [dataset.sequences(batch) for batch in batches]
    stream = [model.embed(ids) for ids, _ in rows]
    contexts = [model.context(x, seq.to(device)) for x, (_, seq) in zip(stream, rows, strict=True)]
    maxima: dict[str, torch.Tensor] = {}
    with console.progress("calibrating", len(config.blocks), "blocks") as progress:
        for index in range(len(config.blocks)):
            block = model.block(index)
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    _watch(module, f"model.blocks.{index}.{name}.weight", maxima)
            for place, context in enumerate(contexts):
                stream[place] = block(stream[place], context)
            progress.advance()
    for name, largest in maxima.items():
        if not largest.isfinite():
            raise InputError(
                f"--calibration: {name.removesuffix('.weight')} meets NaN or infinity on this text"
            )
        if largest == 0:
            raise InputError(
                f"--calibration: {name.removesuffix('.weight')} meets nothing but zeros on this "
                "text, which gives its inputs no scale; give other text, or use --scheme fp8"
            )
    return maxima


def _watch(module: nn.Linear, name: str, maxima: dict[str, torch.Tensor]) -> None:
    def look(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        largest = inputs[0].abs().amax().reshape(1).float().cpu()
        maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

    module.register_forward_pre_hook(look)
