"""The libraries that some jobs need beyond those of a plain install."""

from importlib import import_module

from hybridize.errors import HybridizeError


def require_extra(extra: str, modules: str | tuple[str, ...], job: str) -> None:
    """Import what ``pip install "hybridize[EXTRA]"`` installs.

    Args:
        extra: the name in pyproject.toml.
        modules: what is going to be used.
        job: what for, to begin a sentence with.

    Raises:
        HybridizeError: some of it is not installed; the message says how to get it.
    """
    for module in (modules,) if isinstance(modules, str) else modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise HybridizeError(
                f"{job} needs the package {error.name}, which is not installed: "
                f'pip install "hybridize[{extra}]"'
            ) from error
