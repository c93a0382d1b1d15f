"""Which on-disk architecture a model is written as."""

from hybridize.checkpoints.formats import FORMATS, HYBRID_FORMATS, CannotHoldError, Fit, Format
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig


def choose_format(
    config: HybridConfig, name: str, before: Format | None = None
) -> tuple[Format, Fit, str]:
    """Return the format to write, the model as it holds it, and why.

    Args:
        config: the model.
        name: a format, or ``auto`` for the first that holds it exactly.
        before: what ``auto`` tries first: the format that the model comes in.

    Raises:
        InputError: the named format cannot hold the model.
    """
    if name != "auto":
        chosen = FORMATS[name]
        try:
            return chosen, chosen.fit(config), "as asked"
        except CannotHoldError as error:
            raise InputError(f"--format {name}: {name} cannot hold the result: {error}") from None
    passed_over = []
    if before is not None:
        try:
            fit = before.fit(config)
            if fit.exact:
                return before, fit, "the format that it came in"
        except CannotHoldError as error:
            passed_over.append(f"not {before.name}: {error}")
    for candidate in HYBRID_FORMATS:
        chosen = FORMATS[candidate]
        if chosen is before:
            continue
        try:
            fit = chosen.fit(config)
        except CannotHoldError as error:
            passed_over.append(f"not {candidate}: {error}")
            continue
        if fit.exact:
            reason = "the first stock format that holds it exactly"
            return chosen, fit, "; ".join(passed_over) if chosen.name == "hybridize" else reason
        passed_over.append(f"not {candidate}: {'; '.join(fit.notes)}")
    raise AssertionError("hybridize's own format holds every model")
