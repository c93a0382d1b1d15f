"""`hybridize verify`."""

import click

from hybridize.cli.options import common_options, model_argument
from hybridize.console import console
from hybridize.units import size_in_words


@click.command(short_help="Check a checkpoint's tensors, index and hashes.")
@model_argument
@common_options
def verify(model: str) -> None:
    """Check that MODEL is complete: every tensor, the index, and the recorded hashes.

    The exit code is 1 if there are problems. All of them are listed.
    """
    from hybridize.errors import HybridizeError
    from hybridize.inspection.verify import verify as verify_checkpoint

    report = verify_checkpoint(model)
    if console.json_mode:
        console.json(report.to_dict())
    else:
        console.table(
            ["checkpoint", str(report.directory)],
            [
                ("weight files", report.files),
                ("tensors", report.tensors),
                ("weights", size_in_words(report.bytes)),
                ("recorded commands", report.records),
                *[("checked", check) for check in report.checks],
            ],
        )
    for problem in report.problems:
        console.error(problem)
    if report.problems:
        count = len(report.problems)
        raise HybridizeError(f"{report.directory}: {count} problem{'s' if count > 1 else ''}")
    console.message(f"no problems: {report.directory}")
