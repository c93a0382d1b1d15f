"""`hybridize report`: one page from the files that commands wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridize.errors import InputError
from hybridize.evals.report.figures import Figure, figures
from hybridize.evals.report.layout import lay_out
from hybridize.evals.report.page import page
from hybridize.evals.report.png import require_matplotlib, to_png
from hybridize.evals.report.sources import read_sources
from hybridize.output_files import check_output_file, write_atomically


@dataclass(frozen=True)
class ReportResult:
    """What was written.

    Attributes:
        output: the page.
        figures: their titles.
        pictures: the PNG files, one per figure; empty if none were asked for.
        bytes: the page's size.
    """

    output: Path
    figures: tuple[str, ...]
    pictures: tuple[Path, ...]
    bytes: int

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON can hold them."""
        return {
            "output": str(self.output),
            "figures": list(self.figures),
            "pictures": [str(path) for path in self.pictures],
            "bytes": self.bytes,
        }


def report(
    files: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    title: str = "What was gained and what was lost",
    png: bool = False,
    force: bool = False,
) -> ReportResult:
    """Write one self-contained HTML page.

    Models of different files are the same where their directories have the same name.

    Args:
        files: results of ``eval -o`` and ``bench -o``, scores of ``prune --scores``, and checkpoint
            directories, whose history, losses and choice of attention are shown.
        output: the HTML file.
        title: its heading.
        png: write each figure as a PNG, too, beside the page: ``report-TITLE.png`` for
            ``report.html``.
        force: replace existing files.

    Raises:
        InputError: a file is damaged or none of these; nothing was written.
        HybridizeError: matplotlib is missing, which ``png`` needs.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    if not paths:
        raise InputError("FILE: name at least one file of eval -o or bench -o, or a checkpoint")
    output = Path(output)
    check_output_file(output, force=force)
    if png:
        require_matplotlib()
    sources = read_sources(paths)
    try:
        drawn = list(figures(sources))
        text = page(sources, drawn, title)
    except (ValueError, OverflowError) as error:  # figures that no axis can show, such as NaN
        raise InputError(f"{paths[0]}: holds a figure that cannot be drawn: {error}") from error
    pictures = _pictures(output, drawn) if png else {}
    for path in pictures:
        check_output_file(path, force=force)
    for path, content in pictures.items():
        write_atomically(path, content)
    write_atomically(output, text)
    return ReportResult(
        output, tuple(f.title for f in drawn), tuple(pictures), len(text.encode("utf-8"))
    )


def _pictures(output: Path, drawn: Sequence[Figure]) -> dict[Path, bytes]:
    pictures: dict[Path, bytes] = {}
    for figure in drawn:
        name = f"{output.stem}-{figure.slug}"
        path = output.with_name(f"{name}.png")
        if path in pictures:
            path = output.with_name(f"{name}-{len(pictures)}.png")
        pictures[path] = to_png(lay_out(figure.chart), figure.title, figure.text, figure.made_by)
    return pictures
