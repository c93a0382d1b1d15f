"""The libraries that evaluation needs beyond those of a plain install."""

from importlib import import_module

from hybridize.errors import HybridizeError

_NEEDED = ("datasets", "lm_eval.models.huggingface", "scipy.stats")


def require_eval_extra() -> None:
    """Import what ``pip install "hybridize[eval]"`` installs.

    Raises:
        HybridizeError: some of it is not installed; the message says how to get it.
    """
    for module in _NEEDED:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise HybridizeError(
                f"evaluation needs the package {error.name}, which is not installed: "
                'pip install "hybridize[eval]"'
            ) from error
