"""Why the hub did not give something, in words that say what to do.

The first line of huggingface_hub's own messages is often a status code only.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from hybridize.errors import HybridizeError, InputError, first_line

HUB = "https://huggingface.co"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_AGAIN = "run the same command again: files that are complete are kept"
_CACHE = "set HF_HUB_CACHE to another directory"
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Reason:
    """Why something cannot be downloaded.

    Attributes:
        text: what is wrong and what to do.
        wrong_input: whether the name, the revision, the access or the address is wrong; else the
            hub, the connection or the disk failed.
    """

    text: str
    wrong_input: bool

    def error(self, name: str, kind: str = "directory") -> HybridizeError:
        """Return the error for a model or a dataset.

        Args:
            name: what the user gave.
            kind: what it would be on this machine, a ``directory`` or a ``file``.
        """
        if self.wrong_input:
            return InputError(
                f"{name}: no such {kind}, and it cannot be downloaded from the hub: {self.text}"
            )
        return HybridizeError(f"{name}: cannot be downloaded from the hub: {self.text}")


def reason_of(
    error: BaseException, page: str, revision: str | None, wanted: str = "it"
) -> Reason | None:
    """Return why a library failed, if the hub, the connection or the cache was the cause.

    Args:
        error: the library's exception. Its causes are searched too.
        page: the name after https://huggingface.co/ of the model or the dataset.
        revision: the revision that the user asked for.
        wanted: what was to be downloaded, such as a file's name.
    """
    chain = list(_causes(error))
    for explain in (
        _incomplete,
        lambda cause: _refusal(cause, page, revision),
        lambda cause: _broken_connection(cause, wanted),
        lambda cause: _local_failure(cause, wanted),
        lambda cause: _dataset_failure(cause, page, wanted),
    ):
        for cause in chain:
            found = explain(cause)
            if found is not None:
                return found
    return None


def unknown_reason(error: BaseException) -> Reason:
    """Return the reason for an exception that `reason_of` does not know."""
    return Reason(f"{type(error).__name__}: {first_line(error)}", wrong_input=False)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        # The context is often an error that was handled. But datasets raises some of its errors
        # about what it cannot find or reach without a cause.
        context = current.__context__ if isinstance(current, OSError) else None
        current = current.__cause__ or context


def _incomplete(error: BaseException) -> Reason | None:
    from huggingface_hub.errors import IncompleteSnapshotError

    if not isinstance(error, IncompleteSnapshotError):
        return None
    return Reason(
        "the cache has only a part of it, and the hub cannot be reached or HF_HUB_OFFLINE is set; "
        "run the command once with a connection",
        True,
    )


def _refusal(error: BaseException, page: str, revision: str | None) -> Reason | None:
    """Explain an answer of the hub with an error status."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not isinstance(error, HfHubHTTPError):
        return None
    if page == "datasets":  # of a task of lm-eval, whose datasets only the hub's answer names
        page = f"datasets/{getattr(error, 'repo_id', None) or ''}"
    if isinstance(error, GatedRepoError):
        return _gated(page)
    if isinstance(error, RevisionNotFoundError):
        shown = "" if revision is None else f" {revision!r}"
        return Reason(
            f"it has no revision{shown}; name a branch, a tag or a full commit hash of "
            f"{HUB}/{page}/commits/main",
            True,
        )
    if isinstance(error, DisabledRepoError):
        return Reason(f"it is disabled; {HUB}/{page} may say why", True)
    status = error.response.status_code
    if status == 401 and "Invalid credentials" in str(error):
        return Reason(
            "the hub does not accept the token; set a valid HF_TOKEN or log in with "
            "`hf auth login`, or unset it",
            True,
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return _missing()
    if status == 403:
        return Reason(f"the hub forbids it; {_LOG_IN} of an account that has access", True)
    if status == 429:
        return Reason(
            "the hub allows no more requests for now (429); wait a few minutes, or log in with "
            "`hf auth login` for a higher limit",
            False,
        )
    if status >= 500:
        return Reason(f"the hub fails at the moment ({status}); try again later", False)
    return Reason(f"the hub answers with status {status}: {first_line(error)}", False)


def _broken_connection(error: BaseException, wanted: str) -> Reason | None:
    """Explain a failure between here and the hub."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    if isinstance(error, OfflineModeIsEnabled):
        return Reason(
            f"HF_HUB_OFFLINE is set, and {wanted} is not in the cache; unset it, or give a local "
            "copy",
            True,
        )
    if isinstance(error, httpx.TimeoutException):
        return Reason(
            f"the hub did not answer in time; {_AGAIN}; HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer",
            False,
        )
    if isinstance(error, httpx.ProxyError | httpx.UnsupportedProtocol | httpx.InvalidURL):
        return Reason(f"{first_line(error)}; check HF_ENDPOINT and the settings of the proxy", True)
    if isinstance(error, httpx.ConnectError):
        return Reason(
            f"the hub cannot be reached ({first_line(error)}); check the connection and "
            "HF_ENDPOINT, or give a local copy",
            True,
        )
    if isinstance(error, httpx.HTTPError) or "Consistency check failed" in str(error):
        return Reason(f"the connection broke; {_AGAIN}", False)
    return None


def _local_failure(error: BaseException, wanted: str) -> Reason | None:
    """Explain a failure of the cache or its disk."""
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionResolutionError

    if isinstance(error, LocalEntryNotFoundError | RevisionResolutionError):
        return _unreachable(wanted)
    full = isinstance(error, OSError) and error.errno in _DISK_FULL
    if full or "No space left" in str(error):  # hf_xet raises a RuntimeError
        return Reason(f"the disk of the cache is full; {_CACHE}, or make room", False)
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        where = f" {error.filename}" if error.filename else ""
        return Reason(f"the cache{where} cannot be written ({error.strerror}); {_CACHE}", False)
    return None


def _dataset_failure(error: BaseException, page: str, wanted: str) -> Reason | None:
    """Explain an exception of datasets, which hides the one of huggingface_hub."""
    if type(error).__name__ == "DatasetNotFoundError":
        return _gated(page) if "gated" in str(error) else _missing()
    unreachable = isinstance(error, ConnectionError) and "Couldn't reach" in str(error)
    return _unreachable(wanted) if unreachable else None


def _gated(page: str) -> Reason:
    return Reason(f"it is gated; ask for access at {HUB}/{page}, then {_LOG_IN}", True)


def _missing() -> Reason:
    return Reason(f"it does not exist there, or it is private; check the name, or {_LOG_IN}", True)


def _unreachable(wanted: str) -> Reason:
    return Reason(
        f"the hub cannot be reached, or HF_HUB_OFFLINE is set, and {wanted} is not in the cache; "
        "check the connection, or give a local copy",
        True,
    )
