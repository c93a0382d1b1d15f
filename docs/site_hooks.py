"""Lay the package out as it installs, for mkdocstrings, which reads sources without importing them.

The folders at the repository's root install below ``hybridize`` (`package-dir` in pyproject.toml),
so there they are linked to their places.
"""

import os
import tomllib
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "build" / "site-source" / "hybridize"  # mkdocs.yml names its folder as well


def on_startup(command: str, dirty: bool) -> None:
    """Make the links before mkdocstrings looks for them; two builds at once do no harm."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "hybridize").iterdir():
        _link(PACKAGE / path.name, path)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for name, folder in settings["tool"]["setuptools"]["package-dir"].items():
        if name != "hybridize":
            _link(PACKAGE / name.removeprefix("hybridize."), ROOT / folder)


def _link(place: Path, target: Path) -> None:
    with suppress(FileExistsError):
        place.symlink_to(os.path.relpath(target, place.parent))
