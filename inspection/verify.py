"""`hybridize verify`: is a checkpoint directory whole and sound?"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridize.checkpoints import CheckpointReader, read_provenance
from hybridize.checkpoints.files import PROVENANCE, read_json_object, sha256_of
from hybridize.checkpoints.finite import is_finite
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.tensors import misfits
from hybridize.console import console
from hybridize.errors import InputError


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` looked at and found.

    Attributes:
        directory: the checkpoint.
        files: how many weight files.
        tensors: how many tensors.
        bytes: of their data.
        steps: commands on record.
        checks: what was checked, in words.
        problems: everything that is wrong, a line each; empty if all is well.
    """

    directory: Path
    files: int
    tensors: int
    bytes: int
    steps: int
    checks: tuple[str, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return asdict(self) | {"directory": str(self.directory)}


def verify(model: str | Path) -> VerifyReport:
    """Check a checkpoint: headers, index, every tensor, the architecture, hashes on record.

    Args:
        model: a directory or a hub id.

    Raises:
        InputError: it cannot be read as a checkpoint at all.
    """
    directory = resolve(model)
    problems: list[str] = []
    checks = [
        "headers and index agree",
        "no NaN or infinity",
        "tensors are those that config.json implies",
    ]
    with CheckpointReader(directory, allow_nonfinite=True) as reader:
        format_, config = read_config(reader, quantized=True)
        total = sum(reader.nbytes(name) for name in reader.names)
        with console.progress("verifying", total, "bytes") as progress:
            for name in reader.names:
                if not is_finite(reader.get(name)):
                    problems.append(f"tensor {name!r} has NaN or infinity in it")
                progress.advance(reader.nbytes(name))
        problems += misfits(reader, format_, config)
        steps = read_provenance(directory)
        if steps:
            checks.append("sizes and SHA-256 are those on record")
            problems += _compare_files(directory)
        return VerifyReport(
            directory=directory,
            files=len(reader.files),
            tensors=len(reader.names),
            bytes=total,
            steps=len(steps),
            checks=tuple(checks),
            problems=tuple(problems),
        )


def _compare_files(directory: Path) -> list[str]:
    path = directory / PROVENANCE
    files = read_json_object(path).get("files")
    if not isinstance(files, dict):
        raise InputError(f"{path}: lists no files")
    problems = []
    for name, record in files.items():
        file = directory / name
        if not isinstance(record, dict) or ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"{path}: the entry for {name!r} makes no sense")
        if not os.path.isfile(file):  # False, too, for names that no file can have
            problems.append(f"{name} is missing, which {PROVENANCE} lists")
        elif file.stat().st_size != record.get("bytes"):
            problems.append(
                f"{name} has {file.stat().st_size} bytes; {PROVENANCE} says {record.get('bytes')}"
            )
        elif sha256_of(file) != record.get("sha256"):
            problems.append(f"{name} was changed after it was written: its SHA-256 differs")
    return problems
