"""Measures the cost of quantizing each block alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.quantization import split_scale
from hybridize.compress.quantize.schemes.base import Scheme
from hybridize.compress.quantize.targets import Target
from hybridize.console import console
from hybridize.data.kl import kl_probes
from hybridize.data.packing import PackedDataset
from hybridize.modeling.layers.fp8_linear import FP8Linear
from hybridize.modeling.model import HybridForCausalLM


@torch.no_grad()
def measure_blocks(
    source: Path,
    scheme: Scheme,
    targets: Sequence[Target],
    maxima: Mapping[str, torch.Tensor],
    dataset: PackedDataset,
    device: torch.device,
) -> dict[int, float]:
    """Measure the KL divergence of the model with one block quantized, for each block.

    Args:
        source: the model's directory; the whole model is loaded, in float32.
        scheme: the quantization scheme.
        targets: the linear layers, see `find_targets`.
        maxima: by weight name, the largest input of each layer, ``(1,)``; empty unless the scheme
            has static scales.
        dataset: the text to measure on.
        device: where to measure.

    Returns:
        By block, the KL divergence from the unquantized model, in nats per token.
    """
    model = load_model(source, dtype=torch.float32, device=device)
    by_block: dict[int, list[Target]] = {}
    for target in targets:
        if not target.obstacle:
            by_block.setdefault(target.block, []).append(target)
    blocks = sorted(by_block)
    costs = dict.fromkeys(blocks, 0.0)
    with console.progress("measuring blocks", len(blocks) * len(dataset), "runs") as progress:
        # One batch is in memory. The blocks before the quantized one have run already.
        for probe in kl_probes(model, dataset):
            for block, x in probe.block_inputs(blocks):
                originals = _quantize_layers(model, scheme, by_block[block], maxima)
                costs[block] += probe.num_sequences / len(dataset) * probe.kl(x, block)
                for name, module in originals.items():
                    model.set_submodule(name, module)
                progress.advance(probe.num_sequences)
    return costs


def _quantize_layers(
    model: HybridForCausalLM,
    scheme: Scheme,
    targets: Sequence[Target],
    maxima: Mapping[str, torch.Tensor],
) -> dict[str, nn.Module]:
    """Replace linear layers by FP8 layers; return the replaced ones by name."""
    originals: dict[str, nn.Module] = {}
    for target in targets:
        names, rows = target.entry.parameters, target.entry.rows
        weight = torch.cat([model.get_parameter(name) for name in names])
        values, scale = scheme.quantize(weight)
        parts = zip(names, values.split(rows), split_scale(scale, rows), strict=True)
        for name, part, part_scale in parts:
            path = name.removesuffix(".weight")
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            originals[path] = linear
            layer = FP8Linear(
                part,
                part_scale,
                linear.bias,
                activations=scheme.quantization.activations,
                input_scale=scheme.input_scale(maxima[name]) if name in maxima else None,
            )
            model.set_submodule(path, layer.to(weight.device))
    return originals
