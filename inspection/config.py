"""The options of `hybridize.inspect`."""

from dataclasses import dataclass

from typing_extensions import override

from hybridize.errors import InputError
from hybridize.option_types import Integer, Location
from hybridize.options import Config, force_option, option


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Config):
    """The options of `hybridize.inspect`."""

    states: str | None = option(
        Location("FILE"),
        None,
        help="Also run the model on this text, and report how long its SSM states remember and how "
        "far back its attention looks.",
    )
    states_tokens: int = option(
        Integer(2), 1024, help="Number of tokens of the text; at most the trained context."
    )
    plot: str | None = option(
        Location("FILE"), None, help="Write the results of `states` as a plot (PNG)."
    )
    force: bool = force_option()

    @override
    def check_options(self) -> None:
        if self.plot is not None and self.states is None:
            raise InputError("`plot` shows the results of `states`; give a text with `states=FILE`")
