"""`hybridize report`."""

from pathlib import Path

import click

from hybridize.cli import options
from hybridize.console import console


@click.command("report", short_help="Draw results of eval, bench and distill on one page.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@options.output_option("The page to write, self-contained HTML.", file=True)
@click.option("--title", metavar="TEXT", default="What was gained and what was lost",
              show_default=True, help="The page's heading.")  # fmt: skip
@click.option("--png", is_flag=True,
              help="Write each figure as a PNG, too, beside the page.")  # fmt: skip
@options.force_option
@options.common_options
def report(files: tuple[str, ...], output: Path, title: str, png: bool, force: bool) -> None:
    """Write one page about what FILEs hold: accuracy against speed, recovery, memory, losses.

    FILE is what eval -o, bench -o or prune --scores wrote, or a checkpoint directory, whose history
    is shown.
    """
    from hybridize.evals.report.report import report as write

    result = write(files, output, title=title, png=png, force=force)
    if console.json_mode:
        console.json(result.to_dict())
        return
    console.table(["figure"], [[figure] for figure in result.figures])
    for path in (result.output, *result.pictures):
        console.message(f"written: {path}")
