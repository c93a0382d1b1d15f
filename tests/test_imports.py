"""Imports flow one way.

kernels <- modeling <- checkpoints <- data
    <- convert, compress, evals, exporters, inspection <- face
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

_UP_TO_MODELING = {"kernels", "modeling"}
_UP_TO_CHECKPOINTS = _UP_TO_MODELING | {"checkpoints"}
_UP_TO_DATA = _UP_TO_CHECKPOINTS | {"data"}
# What each part may import, besides itself and SHARED. Parts that are not listed may import all.
MAY_IMPORT: dict[str, set[str]] = {
    "kernels": set(),
    "modeling": {"kernels"},
    "checkpoints": _UP_TO_MODELING,
    "data": _UP_TO_CHECKPOINTS,
    "conversion": _UP_TO_DATA,
    "compress": _UP_TO_DATA,
    "evals": _UP_TO_DATA,
    "exporters": _UP_TO_DATA,
    "inspection": _UP_TO_DATA,
    "errors": set(),
    "file_names": set(),
    "interrupts": set(),
    "console": set(),
    "extras": set(),
    "option_types": set(),
    "progress": set(),
    "units": set(),
    "options": set(),
    "output_files": set(),
    "plots": set(),
}
SHARED = {
    "errors", "console", "extras", "file_names", "interrupts", "option_types", "options",
    "output_files", "plots", "progress", "units", "__version__",
}  # fmt: skip
FOLDERS = {
    "convert" if part == "conversion" else part: part for part in MAY_IMPORT if part not in SHARED
}
"""Each folder at the root, and the name that it has below ``hybridize`` when installed."""


def modules() -> Iterator[tuple[str, Path]]:
    for folder in ("hybridize", *FOLDERS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            base = ("hybridize", FOLDERS[folder]) if folder in FOLDERS else ("hybridize",)
            yield ".".join((*base, *parts)), path


def imported(module: str, source: str) -> Iterator[str]:
    """Every absolute name that the source imports, wherever in the file it does so."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    anchor = package[: len(package) - node.level + 1]
                    base = ".".join([*anchor, base]).rstrip(".")
                yield from (f"{base}.{alias.name}" for alias in node.names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if "import_module" in ast.dump(
                node.func
            ):
                yield name


def breaches(module: str, source: str) -> list[str]:
    """The imports in the source that break the one-way rule."""
    part = module.split(".")[1]
    allowed = MAY_IMPORT[part] | SHARED | {part} if part in MAY_IMPORT else None
    found = []
    for name in imported(module, source):
        top, *rest = name.split(".")
        target = rest[0] if rest else ""
        if top in FOLDERS:
            found.append(f"{module}: {name} should be hybridize.{name}")
        elif top == "hybridize" and allowed is not None and target not in allowed:
            found.append(f"{module} must not import {name}")
    return found


def test_imports_flow_one_way():
    every = list(modules())
    assert len(every) > 10
    assert [
        breach for name, path in every for breach in breaches(name, path.read_text("utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hybridize.kernels.registry", "import hybridize.modeling"),
        ("hybridize.kernels.eager.scan", "from hybridize.modeling.layout import Layout"),
        ("hybridize.modeling.model", "from hybridize.conversion import plan"),
        ("hybridize.modeling.model", "def f():\n    from hybridize.evals import evaluate"),
        ("hybridize.modeling.layers.mlp", "from ...convert.plan import Plan"),
        ("hybridize.modeling.__init__", "from ..cli import options"),
        ("hybridize.checkpoints.load", "import hybridize"),
        ("hybridize.checkpoints.load", "from hybridize import load_model"),
        ("hybridize.checkpoints.load", "importlib.import_module('hybridize.cli')"),
        ("hybridize.conversion.convert", "from hybridize.evals import evaluate"),
        ("hybridize.conversion.convert", "from hybridize import evals"),
        ("hybridize.conversion.convert", "from hybridize.compress.prune import prune"),
        ("hybridize.conversion.convert", "from hybridize.demo import world"),
        ("hybridize.evals.mmlu", "from hybridize.conversion.plan import Plan"),
        ("hybridize.compress.prune", "import hybridize.evals.mmlu"),
        ("hybridize.errors", "from hybridize.modeling.layout import Layout"),
        ("hybridize.console", "from hybridize.cli import cli"),
        ("hybridize.cli.convert", "from convert.convert import convert"),
        ("hybridize.demo.chain", "import modeling.layout"),
    ],
)
def test_a_breach_is_found(module, source):
    assert len(breaches(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hybridize.kernels.scan", "from hybridize.errors import InputError\nimport torch"),
        ("hybridize.kernels.scan", "from hybridize.kernels.reference import scan"),
        ("hybridize.modeling.model", "from hybridize.kernels import ssd_scan"),
        ("hybridize.modeling.layers.mlp", "from ..layout import Layout\nfrom . import norm"),
        ("hybridize.modeling.provenance", "from hybridize import __version__"),
        ("hybridize.conversion.convert", "from hybridize.console import console"),
        ("hybridize.cli.convert", "from hybridize.conversion.convert import convert"),
        ("hybridize.demo.chain", "from hybridize.evals import evaluate"),
        ("hybridize.__init__", "from hybridize.modeling.layout import Layout"),
        ("hybridize.evals.harness", "from lm_eval import evaluator\nfrom datasets import Dataset"),
    ],
)
def test_the_right_direction_passes(module, source):
    assert breaches(module, source) == []
