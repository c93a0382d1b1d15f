"""What choosing by importance is worth: against weights' magnitude, and against chance.

    python benchmarks/pruning.py                                # the bundled checkpoint
    python benchmarks/pruning.py --model DIR --text FILE        # any other

For each budget the architecture is the one that `hybridize prune` picks. What stays of the model in
it is chosen by importance (with the same widths everywhere, and with each block its own), by the
magnitude of the weights, or at random; the KL divergence from the model is measured on text that
none of them saw. Beside it: the memory that the budget predicts against what the loaded model with
a full context takes, and how long the search took.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import machine

from hybridize import load_model, prune
from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.checksums import load_checked
from hybridize.checkpoints.formats import Format, read_config
from hybridize.checkpoints.tensors import CheckpointTensors, Tensors
from hybridize.compress.prune.architecture import Architecture
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.axes.base import Seen
from hybridize.compress.prune.budget import Memory, parse_parameters
from hybridize.compress.prune.cut import CutTensors
from hybridize.compress.prune.ranking import assemble
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.search import layers, search
from hybridize.compress.prune.settings import ALL_AXES
from hybridize.compress.prune.spread import spread
from hybridize.console import console
from hybridize.data.kl import measure_kl
from hybridize.data.source import load_packed_dataset
from hybridize.demo import CHECKPOINT
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from hybridize.modeling.model_spec import ModelSpec
from tools.bundled_checkpoint.texts import generate_prose
from tools.bundled_checkpoint.world import World

DRAWS = 3
"""How many random choices are averaged."""
BATCH = 4
"""Sequences whose cache is counted."""
_LAST = {AttentionSizes: "o_proj", MambaSizes: "out_proj"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--text", type=Path, help="to measure on; the bundled world's")
    parser.add_argument("--budgets", default="90%,80%,70%,60%,50%", help="of the parameters")
    parser.add_argument("--name", help="of the result; the model's directory name if not given")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        seen, unseen = Path(folder) / "seen.txt", Path(folder) / "unseen.txt"
        text = generate_prose(World(), 7, 400) if options.text is None else options.text.read_text()
        half = len(text) // 2
        seen.write_text(text[:half])
        unseen.write_text(text[half:])
        for budget in options.budgets.split(","):
            rows.append(measure(budget, options.model, seen, unseen, Path(folder)))
    report(rows, options)


def measure(budget: str, model: Path, seen: Path, unseen: Path, folder: Path) -> dict[str, Any]:
    """Return the divergences of one budget."""
    result = prune(
        model, folder / "smaller", params=budget, calibration=seen, scores=folder / "scores",
        candidates=8, force=True,
    )  # fmt: skip
    best = result.candidates[0]
    console.message(f"{budget}: {best.what}")
    with CheckpointReader(model) as reader, CheckpointReader(folder / "smaller") as small:
        format_, config = read_config(reader)
        smaller = read_config(small)[1]
        tensors = CheckpointTensors(reader, format_, config)
        importance = Scores.load(folder / "scores", _source_of(folder / "scores"))
        gone = len(config.blocks) - len(smaller.blocks)
        widths = _widths(config, smaller)
        kinds: dict[str, list[Scores]] = {
            "importance": [importance],
            "magnitude": [magnitude(tensors, config, importance)],
            "random": [chance(importance, draw) for draw in range(DRAWS)],
        }
        divergences = {}
        own = spread(Architecture(widths, _dropped(importance, config, format_, gone)), config,
                     importance, None)  # fmt: skip
        per_block = CutTensors(tensors, config, own, importance)
        for kind, choices in kinds.items():
            total = 0.0
            for scores in choices:
                dropped = _dropped(scores, config, format_, gone)
                cut = CutTensors(tensors, config, Architecture(widths, dropped), scores)
                total += divergence_of(cut, model, unseen)
            divergences[kind] = total / len(choices)
            if kind == "importance":
                divergences["importance, each block its own"] = divergence_of(
                    per_block, model, unseen
                )
        started = time.perf_counter()
        limits = [parse_parameters(budget, config)]
        found = search(config, importance, limits, ALL_AXES, best=8,
                       blocks_per_layer=format_.names.blocks_per_layer)  # fmt: skip
        seconds = time.perf_counter() - started
    return {
        "budget": budget,
        "what": best.what,
        "parameters": result.parameters_after,
        "kl": divergences,
        "memory": memory(folder / "smaller"),
        "architectures": found.looked_at,
        "search_seconds": seconds,
    }


@torch.no_grad()
def memory(directory: Path) -> dict[str, float]:
    """Return the bytes that `Memory` predicts, and those that weights and cache really take."""
    model = load_model(directory)
    context = min(512, model.config.max_position_embeddings)
    predicted = Memory(0, context, BATCH, *[model.dtype.itemsize] * 3).of(model.config)
    cache = model(torch.zeros(BATCH, context, dtype=torch.long), use_cache=True).cache
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.parameters()}
    return {"predicted": predicted, "allocated": sum(weights.values()) + cache.nbytes}


def _dropped(scores: Scores, config: ModelSpec, format_: Format, gone: int) -> tuple[int, ...]:
    """Return the places of the blocks that scores say can go."""
    together = layers(config, format_.names.blocks_per_layer)
    cost = {layer: float(scores.blocks[list(layer)].sum()) for layer in together}
    order = sorted(together, key=cost.__getitem__)[: gone // format_.names.blocks_per_layer]
    return tuple(sorted(place for layer in order for place in layer))


def magnitude(tensors: Tensors, config: ModelSpec, importance: Scores) -> Scores:
    """Return scores by the norms of the weights alone."""
    units: dict[str, dict[int, torch.Tensor]] = {}
    blocks = torch.zeros(len(config.blocks))
    for place, sizes in enumerate(config.blocks):
        last = _LAST.get(type(sizes), "down_proj")
        weight = tensors.get(f"model.blocks.{place}.mixer.{last}.weight").double()
        blocks[place] = weight.square().sum()
        state = None
        if isinstance(sizes, MambaSizes):
            rows = tensors.get(f"model.blocks.{place}.mixer.in_proj.weight").double()
            _, _, B, C, _ = rows.square().sum(1).split(sizes.in_proj_splits())
            state = B * C
        for name, axis in AXES.items():
            if place in axis.places(config):
                seen = Seen(weight.square().sum(0), state)
                units.setdefault(name, {})[place] = axis.scores(config, place, seen).float()
    table = tensors.get("model.embed_tokens.weight").double().square().sum(0)
    units["hidden"] = {-1: table.float()}
    return replace(importance, units=units, blocks=blocks)


def chance(importance: Scores, seed: int) -> Scores:
    """Return scores that say nothing."""
    generator = torch.Generator().manual_seed(seed)

    def random(like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator)

    units = {
        name: {place: random(scores) for place, scores in places.items()}
        for name, places in importance.units.items()
    }
    return replace(importance, units=units, blocks=random(importance.blocks))


def divergence_of(cut: CutTensors, model: Path, text: Path) -> float:
    """Return the KL divergence of a cut from the model, in nats per token."""
    teacher = load_model(model, dtype=torch.float32)
    dataset = load_packed_dataset([str(text)], model=model, length=256, tokens=16_384)
    return measure_kl(assemble(cut, cut.config, teacher.device), teacher, dataset)


def _widths(before: ModelSpec, after: ModelSpec) -> dict[str, int]:
    return {name: axis.count(after) for name, axis in AXES.items() if axis.places(before)}


def _source_of(path: Path) -> str:
    return str(load_checked(path)[1]["source"])


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table, draw the plot, and write the figures down."""
    from matplotlib.figure import Figure

    name = options.name or options.model.resolve().name
    kinds = list(rows[0]["kl"])
    console.table(
        ["parameters", *(f"KL by {kind}" for kind in kinds), "memory", "search", "what was cut"],
        [
            (
                f"{row['parameters']:,} ({row['budget']})",
                *(f"{row['kl'][kind]:.3f}" for kind in kinds),
                f"{row['memory']['allocated'] / row['memory']['predicted']:.3f}",
                f"{row['search_seconds']:.2f} s",
                row["what"],
            )
            for row in rows
        ],
        title=f"Pruning {name}",
        caption="Nats per token on text that nothing was chosen on, before any distillation; "
        f"random: mean of {DRAWS}. Memory: allocated over predicted. Search: "
        f"over {rows[0]['architectures']:,} architectures.",
    )
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind, color in zip(kinds, ("#2a6f97", "#61a5c2", "#b56576", "#9aa5b1"), strict=True):
        heights = [row["kl"][kind] for row in rows]
        axes.plot([row["budget"] for row in rows], heights, "o-", color=color, label=kind)
    axes.set_yscale("log")
    axes.set_xlabel("budget, share of the parameters")
    axes.set_ylabel("KL to the model, nats per token")
    axes.set_title(f"What stays of {name}, and by what it was chosen")
    axes.grid(alpha=0.3)
    axes.legend()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"pruning-{name}.json"
    figure.savefig(path.with_suffix(".png"), dpi=130)
    described = machine(torch.device("cpu"))
    result = {"benchmark": "pruning", "model": name, "machine": described, "rows": rows}
    path.write_text(json.dumps(result, indent=2) + "\n")
    console.message(f"written: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
