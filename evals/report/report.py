"""`hybridize report`: one page from the files that commands wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridize.errors import InputError
from hybridize.evals.output import check_output, write_atomically
from hybridize.evals.report.figures import figures
from hybridize.evals.report.page import page
from hybridize.evals.report.sources import read_sources


@dataclass(frozen=True)
class ReportResult:
    """What was written: the file, its figures' titles, and its size in bytes."""

    output: Path
    figures: tuple[str, ...]
    bytes: int

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON can hold them."""
        return {"output": str(self.output), "figures": list(self.figures), "bytes": self.bytes}


def report(
    files: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    title: str = "What was gained and what was lost",
    force: bool = False,
) -> ReportResult:
    """Write one self-contained HTML page.

    Models of different files are the same where their directories have the same name.

    Args:
        files: results of ``eval -o`` and ``bench -o``, and checkpoint directories, whose history
            and losses are shown.
        output: the HTML file.
        title: its heading.
        force: replace an existing file.

    Raises:
        InputError: a file is damaged or none of these; nothing was written.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    if not paths:
        raise InputError("FILE: name at least one file of eval -o or bench -o, or a checkpoint")
    check_output(Path(output), force=force)
    sources = read_sources(paths)
    try:
        drawn = list(figures(sources))
        text = page(sources, drawn, title)
    except (ValueError, OverflowError) as error:  # figures that no axis can show, such as NaN
        raise InputError(f"{paths[0]}: holds a figure that cannot be drawn: {error}") from error
    write_atomically(Path(output), text)
    return ReportResult(Path(output), tuple(f.title for f in drawn), len(text.encode("utf-8")))
