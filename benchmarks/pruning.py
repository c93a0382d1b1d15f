"""Compare pruning by importance with pruning by weight magnitude and with random pruning.

    python benchmarks/pruning.py                                # the bundled checkpoint
    python benchmarks/pruning.py --model DIR --text FILE        # any other

For each budget, `hybridize prune` chooses the architecture. The units to keep are chosen by
importance (with uniform widths and with per-block widths), by the magnitude of the weights, or at
random. The KL divergence from the model is measured on held-out text. The table also shows how long
the search took, and compares the predicted memory with the memory of the loaded model and a full
cache.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bundled import World, generate_prose
from measuring import argument_parser, machine, write_result

from hybridize import load_model, prune
from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.checksums import load_checked
from hybridize.checkpoints.formats import Format, read_config
from hybridize.checkpoints.tensors import CheckpointTensors, Tensors
from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES, axis_names
from hybridize.compress.prune.axes.base import WHOLE_MODEL, ActivationStats
from hybridize.compress.prune.budget import Memory, parameter_budget
from hybridize.compress.prune.per_block_widths import vary_widths
from hybridize.compress.prune.pruned_tensors import PrunedTensors
from hybridize.compress.prune.ranking import build_model
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import layers, search
from hybridize.console import console
from hybridize.data.kl import measure_kl
from hybridize.data.load_text import load_packed_dataset
from hybridize.demo import CHECKPOINT
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.model_spec import ModelSpec

DRAWS = 3
"""Number of random scores; the mean of their KL divergences is reported."""
BATCH = 4
"""Number of sequences in the cache whose memory is measured."""
_LAST_LINEAR = {AttentionSizes: "o_proj", MambaSizes: "out_proj"}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--model",
        type=Path,
        default=CHECKPOINT,
        help="checkpoint directory; default: the bundled checkpoint",
    )
    parser.add_argument("--text", type=Path, help="text to measure on; default: generated")
    parser.add_argument(
        "--budgets",
        default="90%,80%,70%,60%,50%",
        help="percentages of the parameters to keep, separated by commas",
    )
    parser.add_argument("--name", help="name of the result; default: the directory's name")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        calibration, held_out = Path(folder) / "calibration.txt", Path(folder) / "held_out.txt"
        text = generate_prose(World(), 7, 400) if options.text is None else options.text.read_text()
        half = len(text) // 2
        calibration.write_text(text[:half])
        held_out.write_text(text[half:])
        for budget in options.budgets.split(","):
            rows.append(measure(budget, options.model, calibration, held_out, Path(folder)))
    report(rows, options)


def measure(
    budget: str, model: Path, calibration: Path, held_out: Path, folder: Path
) -> dict[str, Any]:
    """Return the KL divergences, the memory and the search time of one budget."""
    result = prune(
        model, folder / "smaller", params=budget, calibration=calibration, scores=folder / "scores",
        candidates=8, force=True,
    )  # fmt: skip
    best = result.candidates[0]
    console.message(f"{budget}: {best.changes}")
    with CheckpointReader(model) as reader, CheckpointReader(folder / "smaller") as small:
        format_, config = read_config(reader)
        smaller = read_config(small)[1]
        tensors = CheckpointTensors(reader, format_, config)
        importance = Scores.load(folder / "scores", _source_of(folder / "scores"))
        num_dropped = len(config.blocks) - len(smaller.blocks)
        widths = _widths(config, smaller)
        kinds: dict[str, list[Scores]] = {
            "importance": [importance],
            "magnitude": [magnitude(tensors, config, importance)],
            "random": [random_scores(importance, draw) for draw in range(DRAWS)],
        }
        divergences = {}
        uniform = Architecture(widths, _dropped(importance, config, format_, num_dropped))
        varied = vary_widths(uniform, config, importance, None)
        per_block = PrunedTensors(tensors, config, varied, importance)
        for kind, choices in kinds.items():
            total = 0.0
            for scores in choices:
                dropped = _dropped(scores, config, format_, num_dropped)
                pruned = PrunedTensors(tensors, config, Architecture(widths, dropped), scores)
                total += kl_of(pruned, model, held_out)
            divergences[kind] = total / len(choices)
            if kind == "importance":
                divergences["importance, per-block widths"] = kl_of(per_block, model, held_out)
        started = time.perf_counter()
        limits = [parameter_budget(budget, config)]
        found = search(config, importance, limits, axis_names(), count=8,
                       blocks_per_layer=format_.names.blocks_per_layer)  # fmt: skip
        seconds = time.perf_counter() - started
    return {
        "budget": budget,
        "changes": best.changes,
        "parameters": result.parameters_after,
        "kl": divergences,
        "memory": memory(folder / "smaller"),
        "architectures": found.considered,
        "search_seconds": seconds,
    }


@torch.no_grad()
def memory(directory: Path) -> dict[str, float]:
    """Return the bytes of weights and cache: as `Memory` predicts them, and as allocated."""
    model = load_model(directory)
    context = min(512, model.config.max_position_embeddings)
    predicted = Memory(0, context, BATCH, *[model.dtype.itemsize] * 3).cost(model.config.spec)
    cache = model(torch.zeros(BATCH, context, dtype=torch.long), use_cache=True).cache
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.parameters()}
    return {"predicted": predicted, "allocated": sum(weights.values()) + cache.nbytes}


def _dropped(scores: Scores, config: ModelSpec, format_: Format, count: int) -> tuple[int, ...]:
    """Return the indices of the blocks with the least importance, in whole layers."""
    blocks_of = layers(config, format_.names.blocks_per_layer)
    cost = {layer: float(scores.blocks[list(layer)].sum()) for layer in blocks_of}
    order = sorted(blocks_of, key=cost.__getitem__)[: count // format_.names.blocks_per_layer]
    return tuple(sorted(block_idx for layer in order for block_idx in layer))


def magnitude(tensors: Tensors, config: ModelSpec, importance: Scores) -> Scores:
    """Return scores computed from the norms of the weights alone."""
    units: dict[str, dict[int, torch.Tensor]] = {}
    blocks = torch.zeros(len(config.blocks))
    for block_idx, sizes in enumerate(config.blocks):
        mixer = f"model.blocks.{block_idx}.mixer"
        last = _LAST_LINEAR.get(type(sizes), "down_proj")
        weight = tensors.get(f"{mixer}.{last}.weight").double()
        blocks[block_idx] = weight.square().sum()
        state = None
        if isinstance(sizes, MambaSizes):
            rows = tensors.get(f"{mixer}.in_proj.weight").double()
            _, _, B, C, _ = rows.square().sum(1).split(sizes.in_proj_splits())
            state = B * C
        for name, axis in AXES.items():
            if block_idx in axis.blocks(config):
                stats = ActivationStats(weight.square().sum(0), state)
                scores = axis.score(axis.sizes_in(config, block_idx), stats)
                units.setdefault(name, {})[block_idx] = scores.float()
    table = tensors.get("model.embed_tokens.weight").double().square().sum(0)
    units["hidden"] = {WHOLE_MODEL: table.float()}
    return replace(importance, units=units, blocks=blocks)


def random_scores(importance: Scores, seed: int) -> Scores:
    """Return random scores."""
    generator = torch.Generator().manual_seed(seed)

    def random(like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator)

    units = {
        name: {block_idx: random(scores) for block_idx, scores in of_axis.items()}
        for name, of_axis in importance.units.items()
    }
    return replace(importance, units=units, blocks=random(importance.blocks))


def kl_of(pruned: PrunedTensors, model: Path, text: Path) -> float:
    """Return the KL divergence of a pruned model from the model, in nats per token."""
    teacher = load_model(model, dtype=torch.float32)
    dataset = load_packed_dataset([str(text)], model=model, length=256, tokens=16_384)
    return measure_kl(build_model(pruned, teacher.device), teacher, dataset)


def _widths(before: ModelSpec, after: ModelSpec) -> dict[str, int]:
    return {name: axis.count_in(after) for name, axis in AXES.items() if axis.blocks(before)}


def _source_of(path: Path) -> str:
    return str(load_checked(path)[1]["source"])


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table, draw the plot, and write the results."""
    from matplotlib.figure import Figure

    name = options.name or options.model.resolve().name
    kinds = list(rows[0]["kl"])
    console.table(
        ["parameters", *(f"KL by {kind}" for kind in kinds), "memory", "search", "cut"],
        [
            (
                f"{row['parameters']:,} ({row['budget']})",
                *(f"{row['kl'][kind]:.3f}" for kind in kinds),
                f"{row['memory']['allocated'] / row['memory']['predicted']:.3f}",
                f"{row['search_seconds']:.2f} s",
                row["changes"],
            )
            for row in rows
        ],
        title=f"Pruning of {name}",
        caption="KL in nats per token, on held-out text, before any distillation. "
        f"Random: mean of {DRAWS} choices. Memory: allocated over predicted. Search: "
        f"over {rows[0]['architectures']:,} architectures.",
    )
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind, color in zip(kinds, ("#2a6f97", "#61a5c2", "#b56576", "#9aa5b1"), strict=True):
        heights = [row["kl"][kind] for row in rows]
        axes.plot([row["budget"] for row in rows], heights, "o-", color=color, label=kind)
    axes.set_yscale("log")
    axes.set_xlabel("budget, percentage of the parameters")
    axes.set_ylabel("KL from the model, nats per token")
    axes.set_title(f"{name}, pruned by different scores")
    axes.grid(alpha=0.3)
    axes.legend()
    described = machine(torch.device("cpu"))
    result = {"benchmark": "pruning", "model": name, "machine": described, "rows": rows}
    path = write_result(options.output, f"pruning-{name}", result).with_suffix(".png")
    figure.savefig(path, dpi=130)
    console.message(f"written: {path}")


if __name__ == "__main__":
    main()
