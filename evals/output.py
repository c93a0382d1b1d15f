"""Write results as lm-eval writes them, so that whatever reads its files reads ours."""

import json
import os
import secrets
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hybridize.errors import HybridizeError, InputError
from hybridize.evals.results import EvaluationResult, ModelResult


def check_output(path: Path, *, force: bool) -> None:
    """Refuse, before any work, an output that could not be written in the end.

    Raises:
        InputError: it exists and ``force`` is not given, or its directory is not there or not
            writable.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a directory; --output names a file")
    if path.exists() and not force:
        raise InputError(f"{path}: exists; --force replaces it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: its directory does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: its directory is not writable")


def write_results(result: EvaluationResult, path: Path) -> None:
    """Write ``result`` to ``path``, in one step.

    For one model, this is a results file of lm-eval's with one key more, ``hybridize``. For
    several, ``models`` holds one such object per model, by name.
    """
    from lm_eval.utils import handle_non_serializable

    if len(result.models) == 1:
        layout = _layout(result, result.models[0])
    else:
        layout = {"models": {model.model: _layout(result, model) for model in result.models}}
    text = json.dumps(layout, indent=2, default=handle_non_serializable, ensure_ascii=False)
    try:
        write_atomically(path, text + "\n")
    except OSError as error:
        raise HybridizeError(f"{path}: cannot be written: {error.strerror}") from error


def _layout(result: EvaluationResult, model: ModelResult) -> dict[str, Any]:
    ours = {
        "version": version("hybridize"),
        "command": "eval",
        "options": result.options,
        "baseline": result.baseline,
        **model.to_dict(),
    }
    return {**model.lm_eval, "hybridize": ours}


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all; text as UTF-8."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
