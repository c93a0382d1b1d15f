"""Write results in the layout of lm-eval's results files, so that its tools can read them."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hybridize.errors import HybridizeError
from hybridize.evals.results import EvaluationResult, ModelResult
from hybridize.output_files import write_atomically


def write_results(result: EvaluationResult, path: Path) -> None:
    """Write ``result`` to ``path``, atomically.

    The file of one model is a results file of lm-eval with one more key, ``hybridize``. The file of
    several models has one such object per model, by name, under the key ``models``.

    Raises:
        HybridizeError: the file cannot be written.
    """
    from lm_eval.utils import handle_non_serializable

    if len(result.models) == 1:
        content = _content(result, result.models[0])
    else:
        content = {"models": {model.model: _content(result, model) for model in result.models}}
    text = json.dumps(content, indent=2, default=handle_non_serializable, ensure_ascii=False)
    try:
        write_atomically(path, text + "\n")
    except OSError as error:
        raise HybridizeError(f"{path}: cannot be written: {error.strerror}") from error


def _content(result: EvaluationResult, model: ModelResult) -> dict[str, Any]:
    ours = {
        "version": version("hybridize"),
        "command": "eval",
        "options": result.options,
        "exam": result.exam,
        "baseline": result.baseline,
        **model.to_dict(),
    }
    return {**model.lm_eval, "hybridize": ours}
