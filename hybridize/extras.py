"""Optional dependencies."""

from importlib import import_module

from hybridize.errors import HybridizeError


def require_extra(extra: str, modules: str | tuple[str, ...], job: str) -> None:
    """Check that modules of an optional dependency can be imported.

    Args:
        extra: the extra in pyproject.toml that installs them.
        modules: the modules.
        job: what needs them; the error message begins with it.

    Raises:
        HybridizeError: one is not installed; the message says how to install it.
    """
    for module in (modules,) if isinstance(modules, str) else modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise HybridizeError(
                f"{job} needs the package {error.name}, which is not installed: "
                f'pip install "hybridize[{extra}]"'
            ) from error
