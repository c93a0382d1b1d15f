"""`hybridize inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybridize.cli.options import common_options, force_option, model_argument
from hybridize.console import console, size_in_words

if TYPE_CHECKING:
    from hybridize.inspection.state_norms import StateReport

_CONTEXT_NAMES = {4096: "4k", 32768: "32k", 131072: "128k", 1048576: "1M"}


@click.command(short_help="Show a checkpoint's blocks, parameters and cache sizes.")
@model_argument
@click.option("--states", type=click.Path(path_type=Path), metavar="FILE",
              help="Also run it over this text: what its states remember, where attention looks.",
              )  # fmt: skip
@click.option("--states-tokens", type=click.IntRange(min=2), default=1024, show_default=True,
              metavar="N", help="How much of the text.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE",
              help="Draw what --states finds as a PNG.")  # fmt: skip
@force_option
@common_options
def inspect(
    model: str, states: Path | None, states_tokens: int, plot: Path | None, force: bool
) -> None:
    """Show what MODEL is made of, without loading it.

    The layout string, the blocks and their sizes, the bytes of keys, values and states at
    growing context lengths, and which hybrid formats could hold it.
    """
    from hybridize.inspection.inspect import inspect as inspect_checkpoint

    if plot is not None and states is None:
        raise click.UsageError("--plot draws what --states finds; name a text with --states FILE")
    found = inspect_checkpoint(model)
    seen = None if states is None else _look(model, states, states_tokens, plot, force)
    if console.json_mode:
        console.json(found.to_dict() | ({} if seen is None else {"states": seen.to_dict()}))
        return
    weights = ", ".join(f"{size_in_words(n)} {dtype}" for dtype, n in found.dtypes.items())
    console.table(
        ["checkpoint", str(found.directory)],
        [
            ("format", found.format),
            ("layout", found.layout),
            ("hidden size", f"{found.hidden_size:,}"),
            ("vocabulary", f"{found.vocab_size:,}"),
            ("trained context", f"{found.max_position_embeddings:,}"),
            ("parameters", f"{found.parameters:,}"),
            ("weights", weights),
            *([("quantized", found.quantization)] if found.quantization else []),
        ],
    )
    console.table(
        ["blocks", "count", "parameters", "share", "sizes"],
        [
            (
                kind.kind,
                kind.count,
                f"{kind.parameters:,}",
                f"{kind.parameters / found.parameters:.1%}",
                "; ".join(kind.sizes),
            )
            for kind in found.kinds
        ],
    )
    console.table(
        ["cache per sequence", "keys and values", "states", "together"],
        [
            (
                _CONTEXT_NAMES.get(cost.context, f"{cost.context:,}"),
                size_in_words(cost.kv),
                size_in_words(cost.state),
                size_in_words(cost.kv + cost.state),
            )
            for cost in found.cache
        ],
    )
    console.table(
        ["format", "could hold it"],
        [(name, "yes" if not reason else f"no: {reason}") for name, reason in found.holds.items()],
    )
    if found.steps:
        console.table(
            ["step", "made by", "from", "when"],
            [
                (i + 1, f"hybridize {step['command']}", step["source"]["name"], step["created"])
                for i, step in enumerate(found.steps)
            ],
        )
    if seen is not None:
        _print_states(seen)


def _look(model: str, text: Path, tokens: int, plot: Path | None, force: bool) -> "StateReport":
    from hybridize.output_files import check_output_file, write_atomically
    from hybridize.inspection.state_norms import inspect_states
    from hybridize.inspection.state_norms_plot import draw_states

    if plot is not None:
        check_output_file(plot, force=force)
    seen = inspect_states(model, text, tokens=tokens)
    if plot is not None:
        write_atomically(plot, draw_states(seen))
    return seen


def _print_states(seen: "StateReport") -> None:
    if seen.memories:
        console.table(
            ["Mamba-2 block", "shortest memory", "median", "longest", "norm of the state"],
            [
                (
                    memory.block,
                    *(f"{_quantile(memory.lengths, share):,.1f}" for share in (0.0, 0.5, 1.0)),
                    f"{memory.norms[-1]:.3g}",
                )
                for memory in seen.memories
            ],
            caption=f"Memory: tokens until 1/e is left, by head, over {seen.tokens:,} tokens.",
        )
    if seen.reaches:
        console.table(
            ["attention block", "nearest head", "median", "farthest", "on itself"],
            [
                (
                    reach.block,
                    *(f"{_quantile(reach.distances, share):,.1f}" for share in (0.0, 0.5, 1.0)),
                    f"{reach.shares[0]:.1%}",
                )
                for reach in seen.reaches
            ],
            caption="Mean distance in tokens, weighted by attention, by head.",
        )


def _quantile(values: tuple[float, ...], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]
