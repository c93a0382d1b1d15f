"""From what a user calls a model to a directory on this machine."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

from hybridize.console import console
from hybridize.errors import InputError

_WEIGHTS = ["*.safetensors"]
_WORDS = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*"]


def resolve(model: str | Path, *, weights: bool = True) -> Path:
    """Return the directory of a checkpoint, downloading it if ``model`` is a hub id.

    Downloads go through huggingface_hub, with its cache, its mirrors and ``HF_HUB_OFFLINE``;
    no code and no pickled weights are fetched.

    Args:
        model: a directory or a hub id.
        weights: whether they are needed; without them a download is small.

    Raises:
        InputError: neither a directory nor a hub id that can be had.
    """
    path = Path(model)
    if os.path.exists(path):  # False, too, for names that no file can have
        return path
    text = str(model)
    if isinstance(model, Path) or not _is_hub_id(text):
        raise InputError(f"{text}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [*_WORDS, *_WEIGHTS] if weights else _WORDS
    # On a terminal, huggingface_hub shows bars of its own.
    progress = (
        nullcontext()
        if sys.stderr.isatty()
        else console.progress(f"downloading {text}", None, "files")
    )
    try:
        with progress:
            return Path(snapshot_download(text, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{text}: no such directory, and not to be had from the hub: {reason[0]}"
        ) from error


def _is_hub_id(text: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1 and not text.startswith(("./", "../"))
