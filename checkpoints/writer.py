"""Writing a checkpoint directory, one tensor at a time; it appears complete or not at all.

The files are written into a working directory beside the output (`leftovers`), and the working
directory is renamed at the end (`output.move_into_place`).
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hybridize.checkpoints.carried_files import copied_files, left_behind
from hybridize.checkpoints.dtypes import dtype_name
from hybridize.checkpoints.files import CONFIG, INDEX, PROVENANCE, sha256_of, sync
from hybridize.checkpoints.header import TensorSpec, write_header
from hybridize.checkpoints.leftovers import make_locked_directory, partial_name
from hybridize.checkpoints.output import check_output, move_into_place
from hybridize.checkpoints.provenance import new_provenance
from hybridize.checkpoints.shards import plan_shards, shard_names
from hybridize.checkpoints.special_floats import encode_special_floats
from hybridize.checkpoints.synced_file import BackgroundHash, SyncedFile
from hybridize.checkpoints.weight_files import NAMED
from hybridize.console import console
from hybridize.errors import HybridizeError, InputError
from hybridize.file_names import utf8
from hybridize.output_files import unfinished

if TYPE_CHECKING:
    import torch

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class CheckpointWriter:
    """A checkpoint directory that is being written.

    The writer works in ``OUTPUT.partial-…`` beside the output, on the same disk. `finish` syncs
    everything and renames the directory. If the ``with`` block ends without `finish`, the working
    directory is removed. Directories that killed runs left beside the output are removed as well.

    Args:
        output: the directory to write.
        tensors: all tensors, in the order in which they will be added.
        config: the content of config.json.
        max_shard_size: bytes of data per safetensors file; a larger tensor gets its own file.
        force: replace an existing output when the new one is complete.
        source: the checkpoint whose other files are copied (see `carried_files`), and whose
            provenance is continued.
        extra_files: further files, text or bytes by name.

    Attributes:
        files: names of the safetensors files.

    Raises:
        InputError: the output cannot be written; see `check_output`.
    """

    def __init__(
        self,
        output: Path,
        tensors: Sequence[TensorSpec],
        *,
        config: Mapping[str, Any],
        max_shard_size: int,
        force: bool = False,
        source: Path | None = None,
        extra_files: Mapping[str, str | bytes] | None = None,
    ) -> None:
        check_output(output, source, force=force)
        self._output, self._source, self._force = output, source, force
        # The source may have named its weights; those of the result have their usual names.
        self._config = {name: value for name, value in config.items() if name != NAMED}
        self._extra = dict(extra_files or {})
        self._shards = plan_shards(tensors, max_shard_size)
        self.files = shard_names(len(self._shards))
        self._partial = partial_name(output)
        self._pending = self._write_shards()
        self._parts: list[torch.Tensor] = []
        self._written: dict[str, dict[str, Any]] = {}
        self._expected: TensorSpec | None = None
        self._new_parents: list[Path] = []
        self._lock: int | None = None
        self._completed = False
        if source is not None:
            _note_what_stays_behind(source)

    def __enter__(self) -> Self:
        try:
            with _named_failures(self._output):
                self._make_partial()
                self._expected = next(self._pending, None)
        except BaseException:  # Python does not call __exit__ if __enter__ fails
            self._clean_up()
            raise
        return self

    def _make_partial(self) -> None:
        self._new_parents = [p for p in self._partial.parents if not os.path.exists(p)]
        try:
            self._lock = make_locked_directory(self._output, self._partial)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise
            # `check_output` has checked permissions, but mkdir can fail for other reasons.
            raise InputError(f"{self._output}: cannot be created: {error.strerror}") from error

    def add(self, name: str, *parts: "torch.Tensor") -> None:
        """Write the next tensor, whole or in parts that are concatenated by rows.

        The tensors must not be changed afterwards, because they are hashed later.

        Raises:
            HybridizeError: the disk is full or failed.
            RuntimeError: it is not the next tensor of the writer's ``tensors``.
        """
        want = self._expected
        shapes = {part.shape[1:] for part in parts} if len(parts) > 1 else set()
        shape = tuple(parts[0].shape)
        if len(parts) > 1:
            shape = (sum(len(part) for part in parts), *shape[1:])
        got = TensorSpec(name, shape, dtype_name(parts[0].dtype))
        if got != want or len(shapes) > 1 or len({part.dtype for part in parts}) > 1:
            raise RuntimeError(f"expected {want}, got {got} in {len(parts)} parts")
        self._parts = list(parts)
        with _named_failures(self._output):
            self._expected = next(self._pending, None)

    def complete(self) -> Path:
        """Write all files beside the weights except the provenance, which `finish` writes.

        Returns:
            The working directory, a checkpoint that can be opened.
        """
        if self._expected is not None:
            raise RuntimeError(f"{self._expected} was never added")
        if not self._completed:
            with _named_failures(self._output):
                self._write_small_files()
            self._completed = True
        return self._partial

    def finish(self, record: dict[str, Any]) -> None:
        """Complete the directory and rename it to its final name.

        Args:
            record: the provenance record of this command, see `provenance`.
        """
        self.complete()
        with _named_failures(self._output):
            self._write_provenance(record)
            for path in self._partial.rglob("*"):
                if path.name not in self._written:  # shards are synced already
                    sync(path)
            sync(self._partial)
            move_into_place(self._partial, self._output, force=self._force)

    def _write_small_files(self) -> None:
        for path in copied_files(self._source) if self._source is not None else []:
            assert self._source is not None
            target = self._partial / path.relative_to(self._source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        config = encode_special_floats(self._config)
        contents = {CONFIG: json.dumps(config, indent=2, allow_nan=False) + "\n", **self._extra}
        if len(self._shards) > 1:
            contents[INDEX] = self._index()
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else utf8(content)
            (self._partial / name).write_bytes(data)

    def _write_provenance(self, record: dict[str, Any]) -> None:
        files = dict(self._written)
        for path in sorted(p for p in self._partial.rglob("*") if p.is_file()):
            name = path.relative_to(self._partial).as_posix()
            if name not in files:
                files[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        provenance = new_provenance(self._source, record, files)
        text = json.dumps(provenance, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (self._partial / PROVENANCE).write_bytes(utf8(text))

    def _index(self) -> str:
        total = sum(spec.nbytes for shard in self._shards for spec in shard)
        weight_map = {
            spec.name: name
            for name, shard in zip(self.files, self._shards, strict=True)
            for spec in shard
        }
        return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)

    def _write_shards(self) -> Iterator[TensorSpec]:
        """Yield each tensor's spec, then write the tensor that `add` has received for it.

        One thread hashes and another syncs the written bytes, while the next tensor is read.
        """
        with ThreadPoolExecutor(1, "sync") as pool:
            for name, shard in zip(self.files, self._shards, strict=True):
                path = self._partial / name
                with BackgroundHash() as digest, SyncedFile(path, pool, digest) as file:
                    file.write(memoryview(write_header(shard)))
                    for spec in shard:
                        yield spec
                        while self._parts:  # rows are contiguous, so parts are simply appended
                            file.write(_bytes_of(self._parts.pop(0)))
                    file.finish()
                self._written[name] = {"sha256": digest.hexdigest(), "bytes": file.size}

    def __exit__(self, *_: object) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        self._pending.close()  # type: ignore[attr-defined]
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        shutil.rmtree(self._partial, ignore_errors=True)
        unfinished.discard(self._partial)
        with suppress(
            OSError
        ):  # the output is there, or another process may have written something
            for parent in self._new_parents:
                parent.rmdir()


def _note_what_stays_behind(source: Path) -> None:
    names = left_behind(source)
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        reason = (
            "code is never copied"
            if names[0].endswith(".py")
            else "hybridize does not know it; copy it yourself if it is needed"
        )
        console.note(f"{source}: not copied to the result: {names[0]}{more} ({reason})")


def _bytes_of(tensor: "torch.Tensor") -> memoryview:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def _named_failures(output: Path) -> Iterator[None]:
    """Turn an OSError into an error that names the output."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _DISK_FULL:
            reason = "no space left on the disk; nothing was left behind"
        raise HybridizeError(f"{output}: {reason}") from error
