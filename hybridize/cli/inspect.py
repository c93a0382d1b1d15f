"""`hybridize inspect`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.options import model_argument
from hybridize.console import console
from hybridize.inspection.config import InspectConfig
from hybridize.units import size_in_words

if TYPE_CHECKING:
    from hybridize.inspection.inspect import Inspection
    from hybridize.inspection.state_norms import StateReport

_CONTEXT_NAMES = {4096: "4k", 32768: "32k", 131072: "128k", 1048576: "1M"}


@click.command(short_help="Show a checkpoint's blocks, parameters and cache sizes.")
@model_argument
@config_options(InspectConfig)
def inspect(model: str, config: InspectConfig) -> None:
    """Show the blocks of MODEL without loading its weights.

    The tables show the layout, the sizes of the blocks, the memory of keys, values and states at
    several context lengths, and which hybrid formats can store the model.
    """
    from hybridize.inspection.inspect import inspect as inspect_checkpoint

    found = inspect_checkpoint(model, config=config)
    if console.json_mode:
        console.json(found.to_dict())
        return
    _print_sizes(found)
    console.table(
        ["format", "can store the model"],
        [(name, f"no: {reason}" if reason else "yes") for name, reason in found.obstacles.items()],
    )
    if found.records:
        console.table(
            ["", "command", "source", "time"],
            [
                (number, f"hybridize {r['command']}", r["source"]["name"], r["created"])
                for number, r in enumerate(found.records, 1)
            ],
        )
    if found.states is not None:
        _print_states(found.states)


def _print_sizes(found: "Inspection") -> None:
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
            *(
                [("ignored in config.json", ", ".join(found.ignored_fields))]
                if found.ignored_fields
                else []
            ),
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
        ["cache per sequence", "keys and values", "states", "total"],
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


def _print_states(report: "StateReport") -> None:
    if report.mamba:
        console.table(
            ["Mamba-2 block", "shortest memory", "median", "longest", "state norm"],
            [
                (memory.block, *_smallest_median_largest(memory.lengths), f"{memory.norms[-1]:.3g}")
                for memory in report.mamba
            ],
            caption="Memory of a head: number of tokens after which 1/e of an input remains. "
            f"Measured over {report.tokens:,} tokens.",
        )
    if report.attention:
        console.table(
            ["attention block", "nearest head", "median", "farthest", "weight of the token itself"],
            [
                (span.block, *_smallest_median_largest(span.distances), f"{span.shares[0]:.1%}")
                for span in report.attention
            ],
            caption="Distance of a head: mean distance of the tokens in its context, weighted by "
            "attention.",
        )


def _smallest_median_largest(values: Sequence[float]) -> tuple[str, str, str]:
    """Return the smallest, the median and the largest value as text."""
    ordered = sorted(values)
    last = len(ordered) - 1
    smallest, median, largest = (ordered[round(share * last)] for share in (0.0, 0.5, 1.0))
    return f"{smallest:,.1f}", f"{median:,.1f}", f"{largest:,.1f}"
