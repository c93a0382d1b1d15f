"""A file that is hashed and synced to disk in the background while it is being written."""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Self

from hybridize.checkpoints.files import sync_range

_CHUNK = 8 << 20  # bytes per call of the operating system's write
_MAX_WAITING = 8  # chunks that are written but not hashed yet; their memory cannot be freed
_SYNC_INTERVAL = 64 << 20  # bytes


class BackgroundHash:
    """A SHA-256 that is computed in its own thread, at most a few chunks behind."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._chunks: Queue[memoryview | None] = Queue(_MAX_WAITING)
        self._worker = Thread(target=self._work, daemon=True)

    def update(self, chunk: memoryview) -> None:
        """Queue a chunk; it must not be changed afterwards."""
        self._chunks.put(chunk)

    def hexdigest(self) -> str:
        """Return the hash; valid after the ``with`` block."""
        return self._digest.hexdigest()

    def _work(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._digest.update(chunk)
            del chunk  # otherwise its tensor would stay in memory until the next chunk arrives

    def __enter__(self) -> Self:
        self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.put(None)
        self._worker.join()


class SyncedFile:
    """A new file that is synced to disk at intervals while it is being written.

    So the disk is busy from the start, and not only at the end of a shard. Synced pages leave the
    page cache and are reused for the next bytes. Otherwise a large checkpoint would fill the page
    cache and evict the pages of other processes. A virtual machine would request every new page
    from its host, which takes several times as long as writing to the disk.

    Args:
        path: the file; it must not exist.
        pool: the thread that syncs.
        digest: the hash of the bytes written.

    Attributes:
        size: bytes written so far.
    """

    def __init__(self, path: Path, pool: ThreadPoolExecutor, digest: BackgroundHash) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._pool, self._digest = pool, digest
        self._syncing: Future[None] | None = None
        self._synced = 0
        self.size = 0

    def write(self, data: memoryview) -> None:
        """Append bytes; they must not be changed afterwards, because they are hashed later."""
        done = 0
        while done < len(data):
            chunk = data[done : done + _CHUNK]
            count = os.write(self._descriptor, chunk)
            self._digest.update(chunk[:count])
            done += count
            self.size += count
            if self.size - self._synced >= _SYNC_INTERVAL:
                self._sync()

    def finish(self) -> None:
        """Wait until all bytes are on the disk."""
        self._sync()
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # an earlier failure is the one to report
            self._wait()
        os.close(self._descriptor)

    def _sync(self) -> None:
        self._wait()
        self._syncing = self._pool.submit(sync_range, self._descriptor, self._synced, self.size)
        self._synced = self.size

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()
