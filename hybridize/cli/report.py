"""`hybridize report`."""

from pathlib import Path

import click

from hybridize.cli.config_options import config_options
from hybridize.cli.options import output_option
from hybridize.console import console
from hybridize.evals.report.config import ReportConfig


@click.command("report", short_help="Draw results of eval, bench and distill on one page.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@output_option("The page to write, a self-contained HTML file.", file=True)
@config_options(ReportConfig)
def report(files: tuple[str, ...], output: Path, config: ReportConfig) -> None:
    """Write one HTML page with figures of the results in FILEs: accuracy, speed, memory, losses.

    FILE is a file of eval -o, bench -o or prune --scores, or a checkpoint directory. The page shows
    the history of a checkpoint.
    """
    from hybridize.evals.report.report import report as write_report

    result = write_report(files, output, config=config)
    if console.json_mode:
        console.json(result.to_dict())
        return
    console.table(["figure"], [[figure] for figure in result.figures])
    for path in (result.output, *result.pictures):
        console.message(f"written: {path}")
