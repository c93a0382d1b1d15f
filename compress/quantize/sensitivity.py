"""What quantizing each block alone costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.quantization import split_scale
from hybridize.compress.quantize.schemes import Scheme
from hybridize.compress.quantize.targets import Target
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.kernels import linear_kl_divergence
from hybridize.modeling.layers.fp8_linear import FP8Linear
from hybridize.modeling.model import HybridForCausalLM

_TOKENS_AT_ONCE = 4096


@torch.no_grad()
def measure_blocks(
    source: Path,
    scheme: Scheme,
    targets: Sequence[Target],
    maxima: Mapping[str, torch.Tensor],
    dataset: PackedDataset,
    device: torch.device,
) -> dict[int, float]:
    """Quantize one block after the other, alone, and run the model.

    Args:
        source: the model's directory; the whole of it is loaded, in float32.
        scheme: how to quantize.
        targets: see `find_targets`.
        maxima: the largest inputs of each layer, where the scheme's activations are static.
        dataset: the text to measure on.
        device: where to measure.

    Returns:
        By block, the KL divergence from the unquantized model, in nats per token.
    """
    model = load_model(source, dtype=torch.float32, device=device)
    batches = [
        tuple(part.to(device) for part in dataset.sequences(rows))
        for rows in torch.arange(len(dataset)).split(max(1, _TOKENS_AT_ONCE // dataset.length))
    ]
    wanted = [_hidden(model, *batch) for batch in batches]
    by_block: dict[int, list[Target]] = {}
    for target in targets:
        if not target.obstacle:
            by_block.setdefault(target.block, []).append(target)
    costs = {}
    with console.progress("measuring blocks", len(by_block), "blocks") as progress:
        for block, members in by_block.items():
            originals = _swap(model, scheme, members, maxima)
            shares = [len(ids) / len(dataset) for ids, _ in batches]
            costs[block] = sum(
                share * _divergence(model, _hidden(model, *batch), want)
                for share, batch, want in zip(shares, batches, wanted, strict=True)
            )
            for name, module in originals.items():
                model.set_submodule(name, module)
            progress.advance()
    return costs


def _swap(
    model: HybridForCausalLM,
    scheme: Scheme,
    targets: Sequence[Target],
    maxima: Mapping[str, torch.Tensor],
) -> dict[str, nn.Module]:
    """Put FP8 layers in the model; return those that were there, by name."""
    originals: dict[str, nn.Module] = {}
    for target in targets:
        names, rows = target.entry.ours, target.entry.rows
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


def _hidden(model: HybridForCausalLM, ids: torch.Tensor, seq_idx: torch.Tensor) -> torch.Tensor:
    """Return what the head sees, ``(tokens, hidden)``."""
    out = model.model(input_ids=ids, seq_idx=seq_idx, use_cache=False)
    return out.last_hidden_state.flatten(0, 1)


def _divergence(model: HybridForCausalLM, got: torch.Tensor, want: torch.Tensor) -> float:
    head, scale = model.lm_head.weight, 1 / model.config.logits_scaling
    return float(linear_kl_divergence(got, head, want, head, scales=(scale, scale)))
