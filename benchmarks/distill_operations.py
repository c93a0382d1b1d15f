"""Operations per training token of each stage of distillation, counted in one step.

    python benchmarks/distill_operations.py MODEL

A multiplication and an addition are two operations; only those of matrix products, attention and
convolutions count. The column "plain" has the formula for a loop without any saving: one forward
pass of the teacher, one of the student, and a backward pass with the gradient of every tensor,
which takes twice the student's forward pass. Head products are products of one token's hidden
state, or gradient, with the whole head. The counts do not depend on the machine.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import argument_parser, write_result
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, mm_flop

from hybridize import convert
from hybridize.checkpoints.hub import resolve
from hybridize.compress.distill.block_cache import BlockCache
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pair import Pair, check_pair, load_pair
from hybridize.compress.distill.stages import make_stage
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.compress.distill.teacher_caches import TeacherCaches
from hybridize.console import console
from hybridize.data.packing import PackedDataset

_TOP = 64


@dataclass(frozen=True)
class Case:
    """One way to train.

    Attributes:
        title: the row's title.
        stage: the stage.
        stored: whether the teacher's results are stored.
        checkpointing: whether activations are recomputed.
        train: the parameters to train.
    """

    title: str
    stage: str
    stored: bool = False
    checkpointing: bool = False
    train: str = "mixers"


CASES = (
    Case("align", "align"),
    Case("align --cache-blocks", "align", stored=True),
    Case("hidden", "hidden"),
    Case("kl", "kl"),
    Case(f"kl --cache-teacher {_TOP}", "kl", stored=True),
    Case("kl --gradient-checkpointing", "kl", checkpointing=True),
    Case("kl --train all", "kl", train="all"),
    Case(f"kl --train all --cache-teacher {_TOP}", "kl", stored=True, train="all"),
)


def main() -> None:
    """Convert the model, count every case, and write the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", help="the teacher, a Transformer: directory or hub id")
    parser.add_argument("--length", type=int, default=128, help="tokens of the step")
    options = parser.parse_args()
    teacher = resolve(options.model)
    with tempfile.TemporaryDirectory() as folder:
        counted = {
            name: count_student(teacher, Path(folder) / "student", options.length, **kept)
            for name, kept in students(teacher).items()
        }
    for name, cases in counted.items():
        console.table(
            ["operations per token", "plain", "counted", "ratio", "head products", "in validation"],
            [
                (
                    title,
                    f"{case['plain'] / 1e6:.1f} M",
                    f"{case['training'] / 1e6:.1f} M",
                    f"{case['training'] / case['plain']:.2f}",
                    f"{case['head_products']:g}",
                    f"{case['validation'] / 1e6:.1f} M",
                )
                for title, case in cases.items()
            ],
            caption=f"{teacher.name}, kept attention: {name}. Step of {options.length} tokens.",
        )
    result = {
        "benchmark": "distill_operations",
        "settings": {"model": teacher.name, "length": options.length, "top": _TOP},
        "operations_per_token": counted,
    }
    write_result(options.output, f"distill_operations-{teacher.name}", result)


def students(teacher: Path) -> dict[str, dict[str, Any]]:
    """Return which attention blocks the students keep, as options of `convert`."""
    from hybridize.checkpoints import CheckpointReader
    from hybridize.checkpoints.formats import read_config
    from hybridize.modeling.layers.sizes import AttentionSizes

    with CheckpointReader(teacher) as reader:
        blocks = read_config(reader)[1].blocks
    layers = sum(isinstance(sizes, AttentionSizes) for sizes in blocks)
    return {
        "a quarter, evenly": {"attention": "25%"},
        "the first half": {"keep": tuple(range(layers // 2))},
    }


def count_student(
    teacher: Path, student: Path, length: int, **kept: Any
) -> dict[str, dict[str, float]]:
    """Convert the teacher, and count the operations of all cases by their titles."""
    convert(teacher, student, force=True, **kept)
    swapped = check_pair(student, teacher)
    result: dict[str, dict[str, float]] = {}
    for train in dict.fromkeys(case.train for case in CASES):
        pair = load_pair(
            student,
            teacher,
            swapped,
            train=train,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        plain = count_plain(pair, length)
        for case in CASES:
            if case.train == train:
                console.message(f"case: {case.title}")
                with tempfile.TemporaryDirectory() as folder:
                    found = count_case(case, replace(pair), length, Path(folder))
                result[case.title] = {"plain": plain} | found
    return result


def step_of(length: int, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random tokens of one sequence and their ``seq_idx``, ``(1, length)`` each."""
    ids = torch.randint(0, vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    return ids, torch.zeros_like(ids)


@torch.no_grad()
def count_plain(pair: Pair, length: int) -> float:
    """Return the operations per token of a training loop without any saving."""
    assert pair.teacher is not None
    vocab_size = pair.student.config.vocab_size
    ids, seq_idx = step_of(length, vocab_size)
    teacher, student = (
        counted(lambda model=model: model(ids, seq_idx=seq_idx, use_cache=False), vocab_size)[0]
        for model in (pair.teacher, pair.student)
    )
    return (teacher + 3 * student) / length


def count_case(case: Case, pair: Pair, length: int, folder: Path) -> dict[str, float]:
    """Return the operations per token, and the head products per token, of one case."""
    vocab_size = pair.student.config.vocab_size
    ids, seq_idx = step_of(length, vocab_size)
    indices = torch.zeros(1, dtype=torch.int64)
    config = DistillConfig(teacher="teacher", stages=(case.stage,), train=case.train)
    caches = TeacherCaches()
    if case.stored:
        caches = stored(case.stage, pair, PackedDataset(ids.int(), seq_idx.int()), folder)
        pair.teacher = None
    if case.checkpointing:
        pair.checkpoint_activations()
    stage = make_stage(case.stage, pair, config, caches)
    training, products = counted(lambda: stage.training_step(ids, seq_idx, indices), vocab_size)
    with torch.no_grad():
        validation, _ = counted(lambda: stage.validation_step(ids, seq_idx, indices), vocab_size)
    if case.checkpointing:
        pair.student.activation_checkpointing_disable()
        pair.student.eval()
    pair.student.zero_grad()
    head = 2 * length * pair.student.config.hidden_size * vocab_size
    return {
        "training": training / length,
        "validation": validation / length,
        "head_products": round(products / head, 3),
    }


def stored(stage: str, pair: Pair, dataset: PackedDataset, folder: Path) -> TeacherCaches:
    """Store what a stage can read instead of running the teacher."""
    if stage == "kl":
        caches = TeacherCaches(predictions=TeacherCache(folder, dataset, _TOP, "teacher"))
    else:
        order, width = torch.arange(len(dataset)), pair.student.config.hidden_size
        blocks = BlockCache(folder, dataset, order, pair.swapped, width, 1 << 40, "teacher")
        caches = TeacherCaches(blocks=blocks)
    caches.fill(pair)
    return caches


def counted(function: Callable[[], object], vocab_size: int) -> tuple[float, float]:
    """Return the operations of a function, and those in products with a vocabulary."""
    in_head = 0

    def product(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        nonlocal in_head
        operations: int = mm_flop(a, b)
        in_head += operations if vocab_size in (*a, *b) else 0
        return operations

    def sum_and_product(c: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
        return product(a, b)

    def sum_and_products(c: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
        operations: int = bmm_flop(a, b)
        return operations

    def attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        batch, heads, length, width = q
        operations: int = 2 * batch * heads * length * k[-2] * (width + v[-1])
        return operations

    def attention_backward(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        batch, heads, length, width = q  # five products instead of two
        operations: int = 2 * batch * heads * length * k[-2] * (3 * width + 2 * v[-1])
        return operations

    aten = torch.ops.aten
    mapping = {
        aten.mm: product,
        aten.addmm: sum_and_product,
        aten.addmm_: sum_and_product,
        aten.baddbmm: sum_and_products,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        function()
    return counter.get_total_flops(), in_head


if __name__ == "__main__":
    main()
