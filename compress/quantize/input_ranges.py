"""Measures the largest inputs of linear layers on some text. Static scales follow from them."""

import torch
from torch import nn

from hybridize.checkpoints.blockwise import BlockwiseModel
from hybridize.checkpoints.tensors import Tensors
from hybridize.console import console
from hybridize.data.kl import index_batches
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.modeling.model_spec import ModelSpec


@torch.no_grad()
def input_maxima(
    tensors: Tensors, config: ModelSpec, dataset: PackedDataset, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the largest magnitude of each linear layer's inputs, ``(1,)``, by its weight's name.

    One block and the residual stream of the whole text are in memory.

    Raises:
        InputError: the inputs of a layer are all zero, or not finite.
    """
    model = BlockwiseModel(tensors, config, device)
    batches = [dataset.sequences(indices) for indices in index_batches(dataset)]
    stream = [model.embed(ids) for ids, _ in batches]
    contexts = [
        model.context(x, seq_idx.to(device))
        for x, (_, seq_idx) in zip(stream, batches, strict=True)
    ]
    maxima: dict[str, torch.Tensor] = {}
    with console.progress("calibrating", len(config.blocks), "blocks") as progress:
        for block_idx in range(len(config.blocks)):
            block = model.block(block_idx)
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    _record_maximum(module, f"model.blocks.{block_idx}.{name}.weight", maxima)
            for number, context in enumerate(contexts):
                stream[number] = block(stream[number], context)
            progress.advance()
    for name, largest in maxima.items():
        layer = name.removesuffix(".weight")
        if not largest.isfinite():
            raise InputError(
                f"`calibration`: the inputs of {layer} are NaN or infinite on this text"
            )
        if largest == 0:
            raise InputError(
                f"`calibration`: the inputs of {layer} are all zero on this text, so they have no "
                "scale; give other text, or use `scheme=fp8`"
            )
    return maxima


def _record_maximum(module: nn.Linear, name: str, maxima: dict[str, torch.Tensor]) -> None:
    """Update ``maxima[name]`` whenever the module runs."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        largest = inputs[0].abs().amax().reshape(1).float().cpu()
        maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

    module.register_forward_pre_hook(hook)
