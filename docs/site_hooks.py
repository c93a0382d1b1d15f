"""Hooks of mkdocs: lay the package out as it installs, and list the options of config classes.

mkdocstrings reads sources without importing them. The folders at the repository's root install
below ``hybridize`` (`package-dir` in pyproject.toml), so links put them there for mkdocstrings.

A line ``<!-- options: hybridize.conversion.config.ConvertConfig -->`` in a page becomes a table of
the options of that class.
"""

import os
import re
import tomllib
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "build" / "site-source" / "hybridize"  # mkdocs.yml names its folder as well

_OPTIONS = re.compile(r"^<!-- options: ([\w.]+) -->$", re.M)


def on_startup(command: str, dirty: bool) -> None:
    """Make the links before mkdocstrings looks for them. Two builds may run at the same time."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "hybridize").iterdir():
        _link(PACKAGE / path.name, path)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for name, folder in settings["tool"]["setuptools"]["package-dir"].items():
        if name != "hybridize":
            _link(PACKAGE / name.removeprefix("hybridize."), ROOT / folder)


def _link(link: Path, target: Path) -> None:
    with suppress(FileExistsError):
        link.symlink_to(os.path.relpath(target, link.parent))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each ``options`` comment by a table."""
    return _OPTIONS.sub(lambda found: options_table(found[1]), markdown)


def options_table(config_class: str) -> str:
    """Return an HTML table of a config class's options.

    Args:
        config_class: its full name.
    """
    module, _, name = config_class.rpartition(".")
    rows = "".join(_row(each) for each in fields(getattr(import_module(module), name)))
    head = "<tr><th>option</th><th>default</th><th>meaning</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _row(each: Field[Any]) -> str:
    from hybridize.options import option_info

    info = option_info(each)
    default = info.default_text
    if default is None:
        default = "required" if each.default is MISSING else f"`{each.default!r}`"
    cells = (f"`{each.name}`", default, info.help)
    return f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in cells)}</tr>"


def _html(text: str) -> str:
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))
