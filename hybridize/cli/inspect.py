"""`hybridize inspect`."""

import click

from hybridize.cli.options import common_options, model_argument
from hybridize.console import console, size_in_words

_CONTEXT_NAMES = {4096: "4k", 32768: "32k", 131072: "128k", 1048576: "1M"}


@click.command(short_help="Show a checkpoint's blocks, parameters and cache sizes.")
@model_argument
@common_options
def inspect(model: str) -> None:
    """Show what MODEL is made of, without loading it.

    The layout string, the blocks and their sizes, the bytes of keys, values and states at
    growing context lengths, and which hybrid formats could hold it.
    """
    from hybridize.modeling.inspect import inspect as inspect_checkpoint

    found = inspect_checkpoint(model)
    if console.json_mode:
        console.json(found.to_dict())
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
