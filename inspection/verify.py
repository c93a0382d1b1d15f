"""`hybridize verify`: whether a checkpoint directory is complete and undamaged.

Every byte of the weights is read, but neither torch nor transformers is imported.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridize.checkpoints import CheckpointReader, read_provenance
from hybridize.checkpoints.files import PROVENANCE, read_json_object, sha256_of
from hybridize.checkpoints.finite import bytes_are_finite
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.hub import resolve_recorded
from hybridize.checkpoints.tensors import mismatches
from hybridize.console import console
from hybridize.errors import InputError


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    Attributes:
        directory: the checkpoint.
        files: the number of weight files.
        tensors: the number of tensors.
        bytes: the bytes of their data.
        records: the number of commands that ``hybridize.json`` lists.
        checks: a description of each check that was made.
        problems: everything that is wrong, one line each; empty if nothing is.
    """

    directory: Path
    files: int
    tensors: int
    bytes: int
    records: int
    checks: tuple[str, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"directory": str(self.directory)}


def verify(model: str | Path) -> VerifyReport:
    """Check a checkpoint: headers, index, config.json, every tensor, and recorded hashes.

    Args:
        model: a directory or a hub id.

    Raises:
        InputError: it is not a checkpoint, or its headers or config.json cannot be read.
    """
    directory = resolve_recorded(model)
    problems: list[str] = []
    checks = [
        "headers and index agree",
        "no NaN or infinity",
        "the tensors match config.json",
    ]
    with CheckpointReader(directory, allow_nonfinite=True) as reader:
        format_, spec = read_config(reader, quantized=True)
        total = sum(reader.nbytes(name) for name in reader.names)
        with console.progress("verifying", total, "bytes") as progress:
            for name in reader.names:
                if not bytes_are_finite(reader.get_bytes(name), reader.dtype(name)):
                    problems.append(f"tensor {name!r} has NaN or infinity in it")
                progress.advance(reader.nbytes(name))
        problems += mismatches(reader, format_, spec)
        records = read_provenance(directory)
        if records:
            checks.append("sizes and SHA-256 of files match hybridize.json")
            problems += _compare_files(directory)
        return VerifyReport(
            directory=directory,
            files=len(reader.files),
            tensors=len(reader.names),
            bytes=total,
            records=len(records),
            checks=tuple(checks),
            problems=tuple(problems),
        )


def _compare_files(directory: Path) -> list[str]:
    """Return how the files differ from the sizes and hashes in ``hybridize.json``."""
    path = directory / PROVENANCE
    files = read_json_object(path).get("files")
    if not isinstance(files, dict):
        raise InputError(f"{path}: lists no files")
    problems = []
    for name, recorded in files.items():
        file = directory / name
        if not isinstance(recorded, dict) or ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"{path}: the entry for {name!r} is invalid")
        if not os.path.isfile(file):  # also False for names that no file can have
            problems.append(f"{name} is missing; {PROVENANCE} lists it")
        elif file.stat().st_size != recorded.get("bytes"):
            size, expected = file.stat().st_size, recorded.get("bytes")
            problems.append(f"{name} has {size} bytes; {PROVENANCE} says {expected}")
        elif sha256_of(file) != recorded.get("sha256"):
            problems.append(f"{name} was changed after it was written: its SHA-256 differs")
    return problems
