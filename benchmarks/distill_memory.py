"""Measure the peak memory of distillation, compared with a forward pass and with training.

Writes a random Llama, converts it, and runs each case in its own process, for a few steps on the
same text:

    python benchmarks/distill_memory.py
    python benchmarks/distill_memory.py --hidden 1024 --layers 16 --vocabulary 128000

The memory that a process has after its imports is subtracted from the peak.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import argument_parser, machine, memory_now, memory_peak, write_result

from hybridize.console import console
from hybridize.units import size_in_words

STEPS = 3


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--hidden", type=int, default=512, help="hidden size")
    parser.add_argument("--layers", type=int, default=12, help="number of layers")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="vocabulary size")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens per sequence")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per step")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(_measured(CASES[options.case], options))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        prepare(options)
        report({name: _in_process(name, options) for name in CASES}, options)


def prepare(options: argparse.Namespace) -> None:
    """Write the teacher, the student and the text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from hybridize import convert

    torch.manual_seed(0)
    teacher = options.folder / "teacher"
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(1, options.hidden // 256),
        vocab_size=options.vocabulary,
    )
    LlamaForCausalLM(config).save_pretrained(teacher)
    words = {f"w{i}": i for i in range(options.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token="w2")
    wrapped.save_pretrained(teacher)
    rng, count = random.Random(0), 2 * options.batch_size * options.seq_len
    text = " ".join(f"w{rng.randrange(options.vocabulary)}" for _ in range(count))
    (options.folder / "text.txt").write_text(text)
    convert(teacher, options.folder / "student", attention="25%")


def forward(options: argparse.Namespace) -> None:
    """Run the teacher once on the batch."""
    from hybridize.checkpoints.load import load_model

    model = load_model(options.folder / "teacher", dtype=torch.float32)
    with torch.no_grad():
        model(_batch(options), use_cache=False)


def train_alone(options: argparse.Namespace) -> None:
    """Train the whole student on the text, with the logits of 1,024 tokens at a time."""
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    from hybridize.checkpoints.load import load_model

    model = load_model(options.folder / "student", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = _batch(options)

    def loss(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model.lm_head(hidden), labels, reduction="sum")

    for _ in range(STEPS):
        hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        chunks = zip(hidden.split(1024), ids[:, 1:].flatten().split(1024), strict=True)
        total = sum(checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks)
        (total / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()


def _distill_case(**config: object) -> Callable[[argparse.Namespace], None]:
    def run(options: argparse.Namespace) -> None:
        from hybridize import distill

        distill(
            options.folder / "student",
            options.folder / "distilled",
            teacher=options.folder / "teacher",
            data=(str(options.folder / "text.txt"),),
            tokens=STEPS * options.batch_size * options.seq_len,
            seq_len=options.seq_len,
            batch_size=options.batch_size,
            validation_sequences=1,
            device="cpu",
            force=True,
            **config,
        )

    return run


CASES: dict[str, Callable[[argparse.Namespace], None]] = {
    "forward": forward,
    "align": _distill_case(stages=("align",)),
    "train-alone": train_alone,
    "kl-cached": _distill_case(stages=("kl",), train="all", cache_teacher=32),
    "kl": _distill_case(stages=("kl",), train="all"),
    "kl-mixers": _distill_case(stages=("kl",), train="mixers"),
    "kl-checkpointing": _distill_case(stages=("kl",), train="all", gradient_checkpointing=True),
}
TITLES = {  # each case's title, and the case that it is compared with
    "forward": ("the teacher's forward pass, without gradients", None),
    "align": ("align", "forward"),
    "train-alone": ("training the whole student on the text", None),
    "kl-cached": ("kl --train all --cache-teacher 32", "train-alone"),
    "kl": ("kl --train all", "train-alone"),
    "kl-mixers": ("kl --train mixers", "train-alone"),
    "kl-checkpointing": ("kl --train all --gradient-checkpointing", "train-alone"),
}


def report(peaks: dict[str, int], options: argparse.Namespace) -> None:
    """Print the table and write the results."""
    ratios = {
        name: None if reference is None else peaks[name] / peaks[reference]
        for name, (_, reference) in TITLES.items()
    }
    console.table(
        ["memory of distillation", "peak", "ratio"],
        [
            (
                title,
                size_in_words(peaks[name]),
                "" if reference is None else f"{ratios[name]:.2f} × {TITLES[reference][0]}",
            )
            for name, (title, reference) in TITLES.items()
        ],
        caption=f"A Llama with {options.layers} layers of width {options.hidden} and "
        f"{options.vocabulary:,} tokens, a quarter of its attention kept. Batches of "
        f"{options.batch_size} × {options.seq_len} tokens in float32.",
    )
    settings = ("hidden", "layers", "vocabulary", "seq_len", "batch_size")
    result = {
        "benchmark": "distill_memory",
        "machine": machine(torch.device("cpu")),
        "settings": {name: getattr(options, name) for name in settings},
        "peak_bytes": peaks,
        "ratios": ratios,
    }
    write_result(options.output, "distill_memory", result)


def _in_process(name: str, options: argparse.Namespace) -> int:
    """Return the peak of a case, measured in its own process."""
    console.message(f"case: {TITLES[name][0]}")
    values = ("hidden", "layers", "vocabulary", "seq_len", "batch_size", "folder")
    arguments = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in values]
    command = [sys.executable, __file__, f"--case={name}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def _measured(case: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    # Libraries that the cases import, so that their memory is not measured.
    import matplotlib.figure  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    before = memory_now()
    case(options)
    return memory_peak() - before


def _batch(options: argparse.Namespace) -> torch.Tensor:
    from hybridize.checkpoints.load import load_tokenizer

    text = (options.folder / "text.txt").read_text()
    ids = load_tokenizer(options.folder / "teacher")(text, return_tensors="pt").input_ids
    return ids[0, : options.batch_size * options.seq_len].view(options.batch_size, -1)


if __name__ == "__main__":
    main()
