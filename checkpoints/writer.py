"""Writing a checkpoint directory one tensor at a time; it appears whole or not at all."""

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any, Self

import torch
from transformers import PreTrainedConfig

from hybridize.checkpoints.files import (
    CONFIG,
    INDEX,
    PROVENANCE,
    WEIGHTS,
    carried_files,
    put_in_place,
    sha256_of,
    sync,
    sync_part,
)
from hybridize.checkpoints.header import write_header
from hybridize.checkpoints.leftovers import PARTIAL, begin
from hybridize.checkpoints.provenance import new_record, read_provenance
from hybridize.errors import HybridizeError, InputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_CHUNK = 8 << 20
_WAITING = 8  # chunks written but not yet hashed: what bounds the memory they hold on to
_SYNCED_AT_ONCE = 64 << 20


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_output(output: Path, source: Path | None, *, force: bool) -> None:
    """Check that a directory may be written, before any work is done.

    Raises:
        InputError: it exists and ``force`` is off, is the source or around it, or its parent
            cannot be written; or the source's record, which goes along, cannot be read.
    """
    if output.name in ("", ".."):  # the new one is written beside it and then renamed
        raise InputError(f"{output}: give --output the directory's own name")
    target = Path(os.path.realpath(output))  # unlike resolve(), at ease with a link to itself
    if source is not None:
        read_provenance(source)  # a record that cannot be read must not surface at the end
    if source is not None and target in (source.resolve(), *source.resolve().parents):
        raise InputError(f"{output}: is or contains the source; choose another --output")
    if source is not None and source.resolve() in target.parents:
        raise InputError(f"{output}: lies inside the source; choose another --output")
    if os.path.lexists(output) and not force:
        raise InputError(f"{output}: exists already; --force replaces it")
    if os.path.exists(output) and not output.is_dir():
        raise InputError(f"{output}: exists and is not a directory; choose another --output")
    parent = next(p for p in target.parents if os.path.exists(p))
    if not parent.is_dir():
        raise InputError(f"{output}: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{output}: no permission to write in {parent}")


class CheckpointWriter:
    """A checkpoint directory in the making.

    Works in ``OUTPUT.partial-…`` beside the target, on the same disk, and renames it when
    `finish` has synced everything. Left without `finish`, it removes what it wrote. What killed
    runs have left beside the target is removed as well.

    Args:
        output: the directory to appear.
        tensors: all tensors, in the order in which they will be added.
        config: config.json.
        max_shard_size: bytes of data per safetensors file; a larger tensor has its own.
        force: replace an existing output, once the new one is complete.
        source: where tokenizer and generation files are copied from, and the history.
        extra_files: further files, by name: texts or bytes.

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
        self._config, self._extra = dict(config), dict(extra_files or {})
        self._shards = _plan_shards(tensors, max_shard_size)
        self.files = _shard_names(len(self._shards))
        self._partial = output.parent / f"{output.name}.{PARTIAL}-{uuid.uuid4().hex[:8]}"
        self._pending = self._write_shards()
        self._parts: list[torch.Tensor] = []
        self._written: dict[str, dict[str, Any]] = {}
        self._expected: TensorSpec | None = None
        self._new_parents: list[Path] = []
        self._lock: int | None = None
        self._finished = False

    def __enter__(self) -> Self:
        try:
            with _named_failures(self._output):
                self._make_partial()
                self._expected = next(self._pending, None)
        except BaseException:  # then nobody calls __exit__
            self._clean_up()
            raise
        return self

    def _make_partial(self) -> None:
        self._new_parents = [p for p in self._partial.parents if not os.path.exists(p)]
        try:
            self._lock = begin(self._output, self._partial)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise
            # Not all that stands against writing shows in permissions; see `check_output`.
            raise InputError(f"{self._output}: cannot be made: {error.strerror}") from error

    def add(self, name: str, *parts: torch.Tensor) -> None:
        """Write the next tensor, whole or as parts to be stacked by rows.

        What is given must not be changed afterwards: hashing lags behind.

        Raises:
            HybridizeError: the disk is full or failed.
            RuntimeError: not the tensor that was announced.
        """
        want = self._expected
        shapes = {part.shape[1:] for part in parts} if len(parts) > 1 else set()
        shape = tuple(parts[0].shape)
        if len(parts) > 1:
            shape = (sum(len(part) for part in parts), *shape[1:])
        got = TensorSpec(name, shape, parts[0].dtype)
        if got != want or len(shapes) > 1 or len({part.dtype for part in parts}) > 1:
            raise RuntimeError(f"expected {want}, got {got} in {len(parts)} parts")
        self._parts = list(parts)
        with _named_failures(self._output):
            self._expected = next(self._pending, None)

    def finish(self, step: dict[str, Any]) -> None:
        """Complete the directory and let it appear under its name.

        Args:
            step: the record of this step, see `provenance`.
        """
        if self._expected is not None:
            raise RuntimeError(f"{self._expected} was never added")
        with _named_failures(self._output):
            self._write_small_files(step)
            for path in self._partial.rglob("*"):
                if path.name not in self._written:  # shards are synced already
                    sync(path)
            sync(self._partial)
            put_in_place(self._partial, self._output, force=self._force)
        self._finished = True

    def _write_small_files(self, step: dict[str, Any]) -> None:
        for path in carried_files(self._source) if self._source is not None else []:
            assert self._source is not None
            target = self._partial / path.relative_to(self._source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        # JSON has no infinity, though the config.json of many a checkpoint has.
        config = PreTrainedConfig._encode_special_floats(self._config)
        contents = {CONFIG: json.dumps(config, indent=2, allow_nan=False) + "\n", **self._extra}
        if len(self._shards) > 1:
            contents[INDEX] = self._index()
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else content.encode()
            (self._partial / name).write_bytes(data)
        files = dict(self._written)
        for path in sorted(p for p in self._partial.rglob("*") if p.is_file()):
            name = path.relative_to(self._partial).as_posix()
            if name not in files:
                files[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        record = new_record(self._source, step, files)
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (self._partial / PROVENANCE).write_text(text, "utf-8")

    def _index(self) -> str:
        total = sum(spec.nbytes for shard in self._shards for spec in shard)
        weight_map = {
            spec.name: name
            for name, shard in zip(self.files, self._shards, strict=True)
            for spec in shard
        }
        return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)

    def _write_shards(self) -> Iterator[TensorSpec]:
        """Ask for one tensor after the other, and write each where it belongs.

        A worker hashes what has been written while the next tensor is read, and another syncs it.
        """
        with ThreadPoolExecutor(1, "sync") as pool:
            for name, shard in zip(self.files, self._shards, strict=True):
                path = self._partial / name
                with _Hash() as digest, _SyncedFile(path, pool, digest) as file:
                    header = write_header([(s.name, s.dtype, s.shape, s.nbytes) for s in shard])
                    file.write(memoryview(header))
                    for spec in shard:
                        yield spec
                        while self._parts:  # rows lie one after the other, and so do parts
                            part = self._parts.pop(0)
                            flat = part.contiguous().reshape(-1).view(torch.uint8)
                            del part
                            file.write(flat.numpy().data)
                            del flat
                    file.finish()
                self._written[name] = {"sha256": digest.hexdigest(), "bytes": file.size}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        self._pending.close()  # type: ignore[attr-defined]
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._finished:
            return
        shutil.rmtree(self._partial, ignore_errors=True)
        with suppress(OSError):  # somebody else may have put something there
            for parent in self._new_parents:
                parent.rmdir()


class _Hash:
    """A SHA-256 that a thread of its own computes, a few chunks behind."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._chunks: Queue[memoryview | None] = Queue(_WAITING)
        self._worker = Thread(target=self._work, daemon=True)

    def update(self, chunk: memoryview) -> None:
        self._chunks.put(chunk)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def _work(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._digest.update(chunk)
            del chunk  # or the tensor lives until the next one comes

    def __enter__(self) -> Self:
        self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.put(None)
        self._worker.join()


class _SyncedFile:
    """A file that is synced in steps, in the background, while it is being written.

    The disk is busy from the start, rather than at the end of a shard. What is synced leaves the
    page cache, whose pages serve the next step: the alternative, filling fresh pages with the
    whole checkpoint, pushes out what others have cached and, in a virtual machine that has to ask
    its host for each, takes several times as long as the disk.

    Args:
        path: the file, which appears empty.
        pool: where syncing is done.
        digest: of what is written.

    Attributes:
        size: bytes written so far.
    """

    def __init__(self, path: Path, pool: ThreadPoolExecutor, digest: _Hash) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._pool, self._digest = pool, digest
        self._syncing: Future[None] | None = None
        self._synced = 0
        self.size = 0

    def write(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            chunk = data[done : done + _CHUNK]
            count = os.write(self._descriptor, chunk)
            self._digest.update(chunk[:count])
            done += count
            self.size += count
            if self.size - self._synced >= _SYNCED_AT_ONCE:
                self._sync()

    def finish(self) -> None:
        """Wait until all of it is on the disk."""
        self._sync()
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # after a failure, which is the one to report
            self._wait()
        os.close(self._descriptor)

    def _sync(self) -> None:
        self._wait()
        self._syncing = self._pool.submit(sync_part, self._descriptor, self._synced, self.size)
        self._synced = self.size

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()


def _plan_shards(tensors: Sequence[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    """Fill shards in order, none beyond ``limit`` unless by a single tensor."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in tensors:
        if shards[-1] and size + spec.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


@contextmanager
def _named_failures(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _DISK_FULL:
            reason = "no space left on the disk; nothing was left behind"
        raise HybridizeError(f"{output}: {reason}") from error
