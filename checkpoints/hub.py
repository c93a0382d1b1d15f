"""Find the directory of a model, given a path or a hub id. Download it if needed."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from hybridize.console import console
from hybridize.errors import InputError, first_line

_WEIGHTS = ["*.safetensors"]
_OTHER_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*"]


def resolve(model: str | Path, *, weights: bool = True) -> Path:
    """Return the directory of a checkpoint, downloading it if ``model`` is a hub id.

    Downloads use huggingface_hub with its cache, its mirrors and ``HF_HUB_OFFLINE``. Code and
    pickled weights are never downloaded.

    Args:
        model: a directory or a hub id.
        weights: whether to download the weights as well.

    Raises:
        InputError: there is no such path, and the hub has no such model or cannot be reached.
    """
    path = Path(model)
    if os.path.exists(path):  # also False for names that no file can have
        return path
    text = str(model)
    if isinstance(model, Path) or not _is_hub_id(text):
        raise InputError(f"{text}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [*_OTHER_FILES, *_WEIGHTS] if weights else _OTHER_FILES
    # On a terminal, huggingface_hub shows its own progress bars.
    progress: AbstractContextManager[object] = (
        nullcontext()
        if sys.stderr.isatty()
        else console.progress(f"downloading {text}", None, "files")
    )
    try:
        with progress:
            return Path(snapshot_download(text, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"{text}: no such directory, and it cannot be downloaded from the hub: "
            f"{_reason(text, error)}"
        ) from error


def _reason(model: str, error: Exception) -> str:
    """Return why a download failed, and what to do.

    The first line of the library's message is often a status code only.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return (
            f"it is gated; ask for access at https://huggingface.co/{model}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "it does not exist there, or it is private; check the name, or log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "the hub cannot be reached, or HF_HUB_OFFLINE is set, and the model is not in the "
            "cache; check the connection, or give a directory"
        )
    return first_line(error)


def _is_hub_id(text: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1 and not text.startswith(("./", "../"))
