"""The options of `hybridize demo`."""

from dataclasses import dataclass

from hybridize.option_types import Location
from hybridize.options import Config, force_option, option


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """Where the demo writes."""

    output: str = option(
        Location("DIR"),
        "demo-out",
        flags=("-o", "--output"),
        help="Where to write checkpoints, measurements and the report.",
    )
    force: bool = force_option()
