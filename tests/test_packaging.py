"""The package list, the entry point and the wheel agree with the folders."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (
    "hybridize",
    "checkpoints",
    "compress",
    "convert",
    "data",
    "evals",
    "exporters",
    "inspection",
    "kernels",
    "modeling",
)
RENAMED = {"convert": "conversion"}
"""Folders that install under another name: `hybridize.convert` is the function."""
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def package_of(folder: Path, root: Path) -> str:
    """The dotted name that a folder below the repository's root installs as."""
    parts = folder.relative_to(root).parts
    parts = (RENAMED.get(parts[0], parts[0]), *parts[1:])
    return ".".join(parts if parts[0] == "hybridize" else ("hybridize", *parts))


def code_folders(root: Path) -> list[Path]:
    """Every folder with Python files below the package's folders."""
    files = (path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return sorted({path.parent for path in files})


def faults(root: Path, setuptools: dict) -> list[str]:
    """The differences between the folders and the ``[tool.setuptools]`` table."""
    folders = {package_of(folder, root): folder for folder in code_folders(root)}
    found = [
        f"{name}: no __init__.py" for name, f in folders.items() if not (f / "__init__.py").exists()
    ]
    found += [f"{name}: not in packages" for name in folders if name not in setuptools["packages"]]
    found += [f"{name}: no such folder" for name in setuptools["packages"] if name not in folders]
    for folder in FOLDERS:
        if (root / folder).is_dir():
            name = package_of(root / folder, root)
            if setuptools["package-dir"].get(name) != folder:
                found.append(f"{name}: not mapped to {folder} in package-dir")
    return found


def test_packages_and_folders_agree():
    assert len(code_folders(ROOT)) >= 8
    assert faults(ROOT, SETUPTOOLS) == []


@pytest.mark.parametrize(
    ("files", "packages", "mapping", "fault"),
    [
        (["modeling/__init__.py"], [], {"hybridize.modeling": "modeling"}, "not in packages"),
        (["modeling/__init__.py"], ["hybridize.modeling"], {}, "not mapped"),
        (
            ["hybridize/__init__.py", "hybridize/cli/a.py"],
            ["hybridize", "hybridize.cli"],
            {"hybridize": "hybridize"},
            "no __init__.py",
        ),
        (
            ["hybridize/__init__.py"],
            ["hybridize", "hybridize.gone"],
            {"hybridize": "hybridize"},
            "no such folder",
        ),
    ],
)
def test_a_fault_is_found(tmp_path, files, packages, mapping, fault):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = faults(tmp_path, {"packages": packages, "package-dir": mapping})
    assert len(found) == 1
    assert fault in found[0]


def test_the_entry_point_is_main():
    from hybridize.__main__ import main

    (script,) = entry_points(group="console_scripts", name="hybridize")
    assert script.load() is main


def test_constraints_pin_every_direct_dependency_within_its_range():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"constraints.txt: {line} is not an exact pin"
            pins[canonicalize_name(name)] = version

    project = PYPROJECT["project"]
    extras = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(each for extra in extras for each in extra)]:
        wanted = Requirement(text)
        if wanted.name != "hybridize":
            pin = pins.get(canonicalize_name(wanted.name))
            assert pin is not None, f"constraints.txt does not pin {wanted.name}"
            assert wanted.specifier.contains(pin), f"{text} does not admit the pinned {pin}"


def test_a_wheel_contains_every_file_and_only_hybridize_at_the_top(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77 to build with")
    tree = tmp_path / "tree"
    junk = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in (folder for folder in FOLDERS if (ROOT / folder).is_dir()):
        shutil.copytree(ROOT / folder, tree / folder, ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta as b; b.build_wheel('..')"],
        cwd=tree, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("hybridize-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    written = {
        "/".join([*package_of(path.parent, tree).split("."), path.name])
        for folder in FOLDERS
        for path in (tree / folder).rglob("*")
        if path.is_file()
    }
    assert packed == written
    assert "hybridize/conversion/__init__.py" in packed
