"""Write one page with the figures of all results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridize.errors import InputError
from hybridize.evals.report.config import ReportConfig
from hybridize.evals.report.figures import Figure, figures
from hybridize.evals.report.layout import lay_out
from hybridize.evals.report.page import page
from hybridize.evals.report.png import to_png
from hybridize.evals.report.read_sources import read_sources
from hybridize.extras import require_extra
from hybridize.file_names import utf8
from hybridize.interrupts import uninterrupted
from hybridize.options import takes_options
from hybridize.output_files import check_output_file, write_atomically


@dataclass(frozen=True)
class ReportResult:
    """The files of a report.

    Attributes:
        output: the page.
        figures: the figures' titles.
        pictures: the PNG files, one per figure; empty if none were requested.
        bytes: the size of the page.
    """

    output: Path
    figures: tuple[str, ...]
    pictures: tuple[Path, ...]
    bytes: int

    def to_dict(self) -> dict[str, object]:
        """Return the result for JSON."""
        return {
            "output": str(self.output),
            "figures": list(self.figures),
            "pictures": [str(path) for path in self.pictures],
            "bytes": self.bytes,
        }


@takes_options(ReportConfig)
def report(
    files: str | Path | Sequence[str | Path], output: str | Path, *, config: ReportConfig
) -> ReportResult:
    """Write one self-contained HTML page.

    Models in different files are the same model if their directories have the same name.

    Args:
        files: results of eval and bench, scores of prune, and checkpoint directories, whose
            history, losses and choice of attention blocks are shown.
        output: the HTML file.
        config: the options.

    Raises:
        InputError: a file has another format or is damaged; nothing was written.
        HybridizeError: matplotlib is missing, which ``png`` needs.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    if not paths:
        raise InputError("`files`: name at least one result of eval or bench, or a checkpoint")
    output = Path(output)
    check_output_file(output, force=config.force)
    if config.png:
        require_extra("bench", "matplotlib", "drawing PNG files")
    sources = read_sources(paths)
    try:
        drawn = list(figures(sources))
        text = page(sources, drawn, config.title)
    except (ValueError, OverflowError) as error:  # values that no axis can show, such as NaN
        raise InputError(f"{paths[0]}: has a value that cannot be drawn: {error}") from error
    pictures = _pictures(output, drawn) if config.png else {}
    for path in pictures:
        check_output_file(path, force=config.force)
    page_bytes = utf8(text)
    with uninterrupted(f"{output} is complete"):
        for path, content in pictures.items():
            write_atomically(path, content)
        write_atomically(output, page_bytes)
    return ReportResult(output, tuple(f.title for f in drawn), tuple(pictures), len(page_bytes))


def _pictures(output: Path, drawn: Sequence[Figure]) -> dict[Path, bytes]:
    pictures: dict[Path, bytes] = {}
    for figure in drawn:
        name = f"{output.stem}-{figure.slug}"
        path = output.with_name(f"{name}.png")
        if path in pictures:
            path = output.with_name(f"{name}-{len(pictures)}.png")
        pictures[path] = to_png(lay_out(figure.chart), figure.title, figure.text, figure.made_by)
    return pictures
