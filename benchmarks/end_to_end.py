"""Compare a whole hybrid with its Transformer, and with the same hybrid in stock transformers.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --attention 25% --lengths 4096,16384
    python benchmarks/end_to_end.py --shape mamba2 --layers 8

The script writes a random Llama of 35 million parameters and converts it. By default, `convert`
derives the sizes of the new blocks from those of attention. With ``--shape mamba2``, they are those
of Mamba-2 hybrids that were trained from scratch: twice the width, a state of 128, one B and C for
all heads. Then the script times the prefill of one sequence at each length, and decoding after the
longest prompt. Each round runs the models in turn. The speed does not depend on the weights.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import argument_parser, interleaved, machine, write_result

from hybridize import convert, load_model
from hybridize.console import console

DECODED_TOKENS = 16
SHAPES: dict[str, dict[str, Any]] = {
    "attention": {},
    "mamba2": {"ssm_expand": 2, "d_state": 128, "ssm_groups": 1, "init": "random"},
}
OURS, STOCK, TRANSFORMER = "hybridize", "transformers, same hybrid", "transformers, the Transformer"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--attention", default="10%", help="attention blocks that the hybrid keeps")
    parser.add_argument(
        "--shape", default="attention", choices=SHAPES, help="shape of the new blocks"
    )
    parser.add_argument("--layers", type=int, default=10, help="number of layers")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size")
    parser.add_argument("--vocabulary", type=int, default=8000, help="vocabulary size")
    parser.add_argument(
        "--lengths", default="4096,8192,32768", help="prompt lengths, comma separated"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, at least 2")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"],
                        help="default: float32 on a CPU, bfloat16 on a GPU")  # fmt: skip
    parser.add_argument("--label", help="suffix of the names of the result files")
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    device = torch.device(options.device)
    lengths = [int(length) for length in options.lengths.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        models, facts = prepare(Path(folder), options, max(lengths), device)
        rows = []
        for length in lengths:
            console.message(f"prefill of {length:,} tokens")
            rows += timed(prefills(models, length, device), "prefill", length, length, options)
        console.message(f"decoding after {max(lengths):,} tokens")
        decoding = decoders(models, max(lengths), device)
        rows += timed(decoding, "decode", max(lengths), DECODED_TOKENS, options)
    report(rows, facts, options, device)


def prepare(
    folder: Path, options: argparse.Namespace, longest: int, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write both checkpoints; return the models and facts about them."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
        vocab_size=options.vocabulary,
        max_position_embeddings=longest + DECODED_TOKENS + 1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "before")
    shape = SHAPES[options.shape]
    result = convert(folder / "before", folder / "hybrid", attention=options.attention, **shape)
    load_options = {"dtype": getattr(torch, options.dtype)}

    def stock(directory: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(directory, **load_options).to(device).eval()

    models = {
        OURS: load_model(folder / "hybrid", **load_options, device=device),
        STOCK: stock(folder / "hybrid"),
        TRANSFORMER: stock(folder / "before"),
    }
    return models, {
        "layout": result.layout_after,
        "parameters_before": result.parameters_before,
        "parameters": result.parameters_after,
        "format": result.format,
    }


def prefills(
    models: dict[str, Any], length: int, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """Return a function for each model that prefills a prompt and returns the outputs."""
    ids = torch.randint(0, models[OURS].config.vocab_size, (1, length), device=device)

    def prefill(model: Any) -> Any:
        with torch.no_grad():
            return model(ids, use_cache=True, logits_to_keep=1)

    return {name: partial(prefill, model) for name, model in models.items()}


def decoders(
    models: dict[str, Any], length: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Return a function for each model that decodes some tokens after those of its last call."""
    caches = {name: prefill().cache for name, prefill in prefills(models, length, device).items()}
    token = torch.zeros(1, 1, dtype=torch.long, device=device)

    def decode(name: str) -> None:
        with torch.no_grad():
            for _ in range(DECODED_TOKENS):
                models[name](token, use_cache=True, cache=caches[name])

    return {name: partial(decode, name) for name in models}


def timed(
    functions: dict[str, Callable[[], object]],
    phase: str,
    length: int,
    tokens: int,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Return the speed of each model; ``tokens`` is the number of tokens per call."""
    measured = interleaved(functions, torch.device(options.device), options.rounds)
    return [
        {
            "phase": phase,
            "context": length,
            "model": name,
            "tokens_per_s": tokens / figures["median_s"],
            **figures,
        }
        for name, figures in measured.items()
    ]


def report(
    rows: list[dict[str, Any]],
    facts: dict[str, Any],
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Print the table, and write the plot and the JSON file."""
    described = machine(device)
    ours = {(r["phase"], r["context"]): r["tokens_per_s"] for r in rows if r["model"] == OURS}
    console.table(
        ["", "context", "model", "tokens/s", "spread", "hybridize is"],
        [
            (
                row["phase"],
                f"{row['context']:,}",
                row["model"],
                f"{row['tokens_per_s']:,.1f}",
                f"±{row['spread'] / 2:.0%}",
                ""
                if row["model"] == OURS
                else f"{ours[row['phase'], row['context']] / row['tokens_per_s']:.1f} × as fast",
            )
            for row in rows
        ],
        caption=f"{described['device']}, {described['threads']} threads, {options.dtype}; a Llama "
        f"of {facts['parameters_before'] / 1e6:.0f} M parameters and its hybrid, "
        f"{facts['parameters'] / 1e6:.0f} M ({facts['layout']}); one sequence, medians of "
        f"{options.rounds} interleaved rounds.",
    )
    result = {
        "benchmark": "end_to_end",
        "machine": described,
        "settings": {
            name: getattr(options, name)
            for name in ("attention", "shape", "layers", "hidden", "vocabulary", "dtype", "rounds")
        },
        "models": facts,
        "rows": rows,
    }
    parts = ["end_to_end", device.type]
    parts += [] if options.shape == "attention" else [options.shape]
    parts += [] if (device.type == "cpu") == (options.dtype == "float32") else [options.dtype]
    parts += [options.label] if options.label else []
    path = write_result(options.output, "-".join(parts), result)
    if len({row["context"] for row in rows}) > 1:
        draw(rows, described["device"], path.with_suffix(".png"))
        console.message(f"written: {path.with_suffix('.png')}")


def draw(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    """Draw prefill speed against length, one line per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, color in ((OURS, "#2a6f97"), (STOCK, "#b56576"), (TRANSFORMER, "#888888")):
        points = [row for row in rows if row["model"] == name and row["phase"] == "prefill"]
        axes.plot(
            [row["context"] for row in points],
            [row["tokens_per_s"] for row in points],
            "o-",
            color=color,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([r["context"] for r in rows if r["model"] == OURS and r["phase"] == "prefill"])
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick / 1024:.0f}k")
    axes.set_xlabel("prompt, tokens")
    axes.set_ylabel("prefill, tokens/s")
    axes.set_title(f"Prefill on {device}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
