"""Choosing the on-disk architecture that a model is written in."""

from hybridize.checkpoints.formats import FORMATS, HYBRID_FORMATS, CannotStoreError, Fit, Format
from hybridize.errors import InputError
from hybridize.modeling.model_spec import ModelSpec


def choose_format(
    spec: ModelSpec, name: str, source_format: Format | None = None
) -> tuple[Format, Fit, str]:
    """Return the format to write, the model adapted to it, and the reason.

    Args:
        spec: the model.
        name: a format, or ``auto`` for the first format that stores the model exactly.
        source_format: the format of the source; ``auto`` tries it first.

    Raises:
        InputError: the named format does not exist or cannot store the model.
    """
    if name != "auto":
        if name not in FORMATS:
            raise InputError(f"`format={name}`: choose one of {', '.join(('auto', *FORMATS))}")
        chosen = FORMATS[name]
        try:
            return chosen, chosen.fit(spec), "chosen with `format`"
        except CannotStoreError as error:
            raise InputError(f"`format={name}`: {name} cannot store the result: {error}") from None
    candidates = [FORMATS[candidate] for candidate in HYBRID_FORMATS]
    if source_format is not None:
        candidates = [source_format, *(c for c in candidates if c is not source_format)]
    rejected = []
    for chosen in candidates:
        try:
            fit = chosen.fit(spec)
        except CannotStoreError as error:
            rejected.append(f"not {chosen.name}: {error}")
            continue
        if not fit.exact:
            rejected.append(f"not {chosen.name}: {'; '.join(fit.notes)}")
        elif chosen is source_format:
            return chosen, fit, "the format of the source"
        elif chosen.name == "hybridize":
            return chosen, fit, "; ".join(rejected)
        else:
            return chosen, fit, "the first stock format that stores the model exactly"
    raise AssertionError("hybridize's own format stores every model")
