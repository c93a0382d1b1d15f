"""One commit of a model's repository on the hub: its files, without downloading all of them.

huggingface_hub does the work, and handles its cache, mirrors, tokens and ``HF_HUB_OFFLINE``.
"""

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hybridize.checkpoints.files import CONFIG, read_json_object
from hybridize.checkpoints.header import TensorLocation, parse_remote_header, read_header
from hybridize.checkpoints.hub_errors import reason_of, unknown_reason
from hybridize.checkpoints.hub_headers import read_start
from hybridize.checkpoints.other_directories import describe_names
from hybridize.checkpoints.weight_files import CheckpointFiles
from hybridize.console import console
from hybridize.errors import HybridizeError, InputError

if TYPE_CHECKING:
    from huggingface_hub import ResolvedRevision

_CONNECTIONS = 8
_REVISION = re.compile(r"\w[\w./+-]*")  # of git's names, those that are sure to be no path


def parse_hub_id(text: str) -> tuple[str, str | None] | None:
    """Return the repository and the revision of ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.

    Returns:
        None if the text cannot be a hub id.

    Raises:
        InputError: it is a hub id with an impossible revision.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    repository, at, revision = text.partition("@")
    if repository.count("/") != 1 or repository.startswith(("./", "../")):
        return None
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return None
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(
            f"{text}: {revision!r} is no revision; name a branch, a tag or a full commit hash"
        )
    return repository, revision or None


class HubRepository(CheckpointFiles):
    """The files of one commit.

    Every download goes into huggingface_hub's cache, whose directory for the commit then has more
    files. Files that are there are not downloaded again.

    Args:
        text: the model as the user named it.
        name: ``OWNER/NAME``.
        revision: a branch, a tag or a commit; None for the main branch.

    Raises:
        InputError: the hub does not have it or does not give it, or it has no config.json.
        HybridizeError: the connection, the hub or the cache fails.
    """

    def __init__(self, text: str, name: str, revision: str | None) -> None:
        self._text, self._name, self._wanted = text, name, revision
        with self._named_failures():
            self._revision = self._resolve()
        # The first download makes huggingface_hub list the files, and keep the list in its cache.
        self._directory = self._download([CONFIG])
        if CONFIG not in self.names():
            raise InputError(f"{text}: has no {CONFIG} on the hub; {describe_names(self.names())}")

    @property
    @override
    def place(self) -> Path:
        return Path(self._text)

    @override
    def names(self) -> Collection[str]:
        return self._sizes

    @override
    def read_json(self, name: str) -> dict[str, Any]:
        return read_json_object(self.fetch([name]) / name)

    @override
    def read_headers(self, names: Sequence[str]) -> Iterator[dict[str, TensorLocation]]:
        with ThreadPoolExecutor(_CONNECTIONS, "headers") as pool:
            yield from pool.map(self._read_header, names)

    def fetch(self, names: Iterable[str]) -> Path:
        """Download files, and return their directory.

        Raises:
            InputError: the hub does not give them, or they are not in the cache without a
                connection.
            HybridizeError: the connection, the hub or the cache fails.
        """
        missing = [name for name in dict.fromkeys(names) if not (self._directory / name).exists()]
        if missing:
            self._download(missing)
        for name in missing:
            if not (self._directory / name).exists():
                raise InputError(
                    f"{self._text}: the cache has no {name}, and the hub cannot be reached or "
                    "HF_HUB_OFFLINE is set; run the command once with a connection"
                )
        return self._directory

    def _read_header(self, name: str) -> dict[str, TensorLocation]:
        path = self._directory / name
        return read_header(path) if path.exists() else self._remote_header(name)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """The size in bytes of each file of the commit."""
        from huggingface_hub import HfApi, get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError, OfflineModeIsEnabled
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils import httpx

        try:
            return {
                file.path: file.size
                for file in get_cached_repo_tree(self._name, revision=self._revision)
            }
        except CachedRepoTreeNotFoundError:  # the cache cannot be written, or is an old one
            pass
        with self._named_failures():
            try:
                tree = HfApi().list_repo_tree(
                    self._name, revision=self._revision.resolved, recursive=True
                )
                return {file.path: file.size for file in tree if isinstance(file, RepoFile)}
            except (OfflineModeIsEnabled, httpx.TransportError):
                files = [path for path in self._directory.rglob("*") if path.is_file()]
                return {
                    path.relative_to(self._directory).as_posix(): path.stat().st_size
                    for path in files
                }

    def _resolve(self) -> "ResolvedRevision":
        """Find the commit. If the hub does not answer or refuses, take the commit in the cache."""
        from huggingface_hub import HfApi, constants, is_offline_mode
        from huggingface_hub.errors import RevisionNotFoundError

        answers: list[Any] = []

        class Api(HfApi):
            def repo_info(self, *arguments: Any, **options: Any) -> Any:
                answers.append(super().repo_info(*arguments, **options))
                return answers[-1]

        try:
            found = Api().resolve_revision(self._name, revision=self._wanted)
        except RevisionNotFoundError:
            raise
        except Exception:
            cached = self._cached_revision()
            if cached is None:
                raise
            found = cached
        if answers and answers[0].id not in (None, self._name):
            console.note(f"{self._name} is now {answers[0].id} on the hub")
        is_commit = self._wanted == found.resolved
        if not answers and not is_commit and not is_offline_mode():
            console.note(
                f"{self._text}: the hub does not answer or does not give it; using commit "
                f"{found.resolved[:12]} of the cache {constants.HF_HUB_CACHE}"
            )
        return found

    def _cached_revision(self) -> "ResolvedRevision | None":
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RevisionResolutionError

        try:
            return HfApi().resolve_revision(
                self._name, revision=self._wanted, local_files_only=True
            )
        except RevisionResolutionError:
            return None

    def _download(self, names: Collection[str]) -> Path:
        from huggingface_hub import snapshot_download

        # On a terminal, huggingface_hub shows its own progress bars.
        progress: AbstractContextManager[object] = (
            nullcontext()
            if sys.stderr.isatty()
            else console.progress(f"downloading {self._text}", None, "files")
        )
        wanted = "the model" if CONFIG in names else next(iter(names))
        with self._named_failures(wanted), progress:
            return Path(
                snapshot_download(
                    self._name,
                    revision=self._revision,
                    allow_patterns=[escape(name) for name in names],
                )
            )

    def _remote_header(self, name: str) -> dict[str, TensorLocation]:
        from huggingface_hub import hf_hub_url

        with self._named_failures(name):
            url = hf_hub_url(self._name, name, revision=self._revision.resolved)
            text = read_start(url)
        return parse_remote_header(self.place / name, text, self._sizes[name])

    @contextmanager
    def _named_failures(self, wanted: str = "the model") -> Iterator[None]:
        """Turn the exceptions of huggingface_hub into errors that say what to do."""
        try:
            yield
        except HybridizeError:
            raise
        except Exception as error:  # there is an own type for each kind of failure
            reason = reason_of(error, self._name, self._wanted, wanted) or unknown_reason(error)
            raise reason.error(self._text) from error
