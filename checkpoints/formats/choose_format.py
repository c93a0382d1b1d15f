"""Choosing the on-disk architecture that a model is written in."""

from hybridize.checkpoints.formats import FORMATS, HYBRID_FORMATS, CannotHoldError, Fit, Format
from hybridize.errors import InputError
from hybridize.modeling.model_spec import ModelSpec


def choose_format(
    config: ModelSpec, name: str, source_format: Format | None = None
) -> tuple[Format, Fit, str]:
    """Return the format to write, the model adapted to it, and the reason.

    Args:
        config: the model.
        name: a format, or ``auto`` for the first format that holds the model exactly.
        source_format: the format of the source; ``auto`` tries it first.

    Raises:
        InputError: the named format does not exist or cannot hold the model.
    """
    if name != "auto":
        if name not in FORMATS:
            raise InputError(f"`format={name}`: choose one of {', '.join(('auto', *FORMATS))}")
        chosen = FORMATS[name]
        try:
            return chosen, chosen.fit(config), "chosen with `format`"
        except CannotHoldError as error:
            raise InputError(f"`format={name}`: {name} cannot hold the result: {error}") from None
    rejected = []
    if source_format is not None:
        try:
            fit = source_format.fit(config)
            if fit.exact:
                return source_format, fit, "the format of the source"
        except CannotHoldError as error:
            rejected.append(f"not {source_format.name}: {error}")
    for candidate in HYBRID_FORMATS:
        chosen = FORMATS[candidate]
        if chosen is source_format:
            continue
        try:
            fit = chosen.fit(config)
        except CannotHoldError as error:
            rejected.append(f"not {candidate}: {error}")
            continue
        if fit.exact:
            reason = "the first stock format that holds the model exactly"
            return chosen, fit, "; ".join(rejected) if chosen.name == "hybridize" else reason
        rejected.append(f"not {candidate}: {'; '.join(fit.notes)}")
    raise AssertionError("hybridize's own format holds every model")
