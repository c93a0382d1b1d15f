"""The options of `hybridize.report`."""

from dataclasses import dataclass

from hybridize.option_types import Flag, Text
from hybridize.options import Config, force_option, option


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """What a report looks like."""

    title: str = option(Text(), "Accuracy, speed and memory", help="Heading of the page.")
    png: bool = option(
        Flag(),
        False,
        help="Also write each figure as a PNG file, next to the page: page-FIGURE.png for "
        "page.html.",
    )
    force: bool = force_option()
