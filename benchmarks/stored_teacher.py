"""What storing the teacher's results costs: the error of the loss and its gradient, and bytes.

    python benchmarks/stored_teacher.py MODEL --data TEXT

`distill --cache-teacher K` compares the K most likely tokens and merges all others, which gives a
lower bound of the divergence; log-probabilities are rounded to float16. `distill --cache-blocks`
rounds to bfloat16. The errors here are relative to the loss and the gradient of a run without
stored results. The students are converted from the model's weights, without calibration.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import argument_parser, write_result

from hybridize import convert
from hybridize.checkpoints.hub import resolve
from hybridize.compress.distill.block_cache import BlockCache
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import Pair, check_pair, load_pair
from hybridize.compress.distill.stages import make_stage
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.compress.distill.teacher_caches import TeacherCaches
from hybridize.console import console
from hybridize.data.load_text import load_packed_dataset
from hybridize.data.packing import PackedDataset

TOPS = (1, 4, 16, 64, 256)
STUDENTS = {"an eighth": "87.5%", "three quarters": "25%"}
"""The students by the part of attention that is replaced, with `convert`'s option."""


def main() -> None:
    """Measure both students, and write the tables."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", help="the teacher, a Transformer: directory or hub id")
    parser.add_argument("--data", required=True, help="text")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--sequences", type=int, default=2, help="number of sequences")
    options = parser.parse_args()
    teacher = resolve(options.model)
    measured = {}
    for name, attention in STUDENTS.items():
        with tempfile.TemporaryDirectory() as folder:
            convert(teacher, Path(folder) / "student", attention=attention)
            measured[name] = measure(Path(folder), teacher, options)
        report(name, measured[name], teacher.name)
    settings = {"model": teacher.name, "length": options.length, "sequences": options.sequences}
    result = {"benchmark": "stored_teacher", "settings": settings, "replaced": measured}
    write_result(options.output, f"stored_teacher-{teacher.name}", result)


def measure(folder: Path, teacher: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the errors of one student."""
    student = folder / "student"
    dataset = load_packed_dataset(
        [options.data],
        model=teacher,
        length=options.length,
        tokens=options.length * options.sequences,
    )
    pair = load_pair(
        student,
        teacher,
        check_pair(student, teacher),
        train="mixers",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    exact = step("kl", pair, dataset)
    predictions = {}
    for top in TOPS:
        cache = TeacherCache(folder / "cache", dataset, top, "teacher")
        cache.fill(pair.teacher)  # type: ignore[arg-type]
        found = step("kl", pair, dataset, TeacherCaches(predictions=cache))
        size = stored_bytes(folder / "cache", f"predictions-{top}-*") / dataset.tokens
        predictions[top] = errors(found, exact) | {"bytes_per_token": round(size, 1)}
    exact_blocks = step("align", pair, dataset)
    order, width = torch.arange(len(dataset)), pair.student.config.hidden_size
    blocks = BlockCache(folder / "cache", dataset, order, pair.swapped, width, 1 << 40, "teacher")
    blocks.fill(pair.teacher)  # type: ignore[arg-type]
    found = step("align", pair, dataset, TeacherCaches(blocks=blocks))
    size = stored_bytes(folder / "cache", "blocks-*") / dataset.tokens
    return {
        "kl": exact[0],
        "predictions": predictions,
        "align": exact_blocks[0],
        "blocks": errors(found, exact_blocks) | {"bytes_per_token": round(size, 1)},
    }


def step(
    name: str, pair: Pair, dataset: PackedDataset, caches: TeacherCaches | None = None
) -> tuple[float, torch.Tensor]:
    """Return the loss of a training step on the whole dataset, and its gradient as one vector."""
    config = DistillConfig(teacher="teacher", stages=(name,))
    stage = make_stage(name, pair, config, caches)
    indices = torch.arange(len(dataset))
    loss = stage.training_step(*dataset.sequences(indices), indices)
    gradients = [parameter.grad for parameter in stage.parameters.values()]
    vector = torch.cat([g.flatten() for g in gradients if g is not None])
    for parameter in stage.parameters.values():
        parameter.grad = None
    return loss, vector


def errors(
    found: tuple[float, torch.Tensor], exact: tuple[float, torch.Tensor]
) -> dict[str, float]:
    """Return the relative errors of a loss and of its gradient, and the gradients' cosine."""
    ours, theirs = found[1].double(), exact[1].double()
    return {
        "loss": found[0] / exact[0] - 1,
        "gradient": float((ours - theirs).norm() / theirs.norm()),
        "cosine": float(torch.cosine_similarity(ours, theirs, dim=0)),
    }


def stored_bytes(folder: Path, pattern: str) -> int:
    """Return the size of the files of a cache."""
    return sum(path.stat().st_size for path in folder.glob(pattern))


def report(name: str, measured: dict[str, Any], model: str) -> None:
    """Print the table of one student."""
    rows = {f"--cache-teacher {top}": found for top, found in measured["predictions"].items()}
    console.table(
        ["stored", "bytes per token", "loss", "gradient's error", "gradient's cosine"],
        [
            (
                title,
                f"{found['bytes_per_token']:,.0f}",
                f"{100 * found['loss']:+.2g}%",
                f"{100 * found['gradient']:.2g}%",
                f"{found['cosine']:.4f}",
            )
            for title, found in (rows | {"--cache-blocks": measured["blocks"]}).items()
        ],
        caption=f"{model}, {name} of attention replaced: KL {measured['kl']:.3f}, align "
        f"{measured['align']:.3f}.",
    )


if __name__ == "__main__":
    main()
