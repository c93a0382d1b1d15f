"""Evaluate checkpoints: accuracy on lm-eval's tasks, perplexity, and both against a baseline."""

import codecs
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.errors import InputError
from hybridize.evals.checkpoint_list import find_checkpoints
from hybridize.evals.compare import compare
from hybridize.evals.config import EvalConfig
from hybridize.evals.results import (
    EvaluationResult,
    ModelResult,
    Perplexity,
    read_metrics,
    read_scores,
)
from hybridize.evals.results_file import write_results
from hybridize.extras import require_extra
from hybridize.options import takes_options
from hybridize.output_files import check_output_file

if TYPE_CHECKING:
    import torch

    from hybridize.evals.harness_model import HarnessModel
    from hybridize.evals.tasks import TaskSelection

# The cost of attention grows with the window, so long-context models get shorter windows.
PERPLEXITY_WINDOW = 4096


@takes_options(EvalConfig)
def evaluate(models: str | Path | Sequence[str | Path], *, config: EvalConfig) -> EvaluationResult:
    """Measure accuracy and perplexity of checkpoints with lm-eval.

    With ``mmlu_dir``, subjects that MMLU does not have are asked in the same way and form the group
    ``mmlu_custom``. With a cache dtype other than auto, the model reads texts in chunks through its
    cache, so that the results include the effect of the lower precision.

    Args:
        models: checkpoint directories or hub ids.
        config: the options.

    Returns:
        The results of each model, the baseline first.

    Raises:
        InputError: an option or a file is wrong; nothing was written.
        HybridizeError: the evaluation failed.
    """
    output = None if config.output is None else Path(config.output)
    if output is not None:
        check_output_file(output, force=config.force)
    text = (
        None
        if config.perplexity is None
        else _Text.read(Path(config.perplexity), config.perplexity_size)
    )
    directories = find_checkpoints(models, config.baseline)
    require_extra("eval", ("datasets", "lm_eval.models.huggingface", "scipy.stats"), "evaluation")

    from hybridize.evals.harness import compiled_templates, quiet_libraries

    with quiet_libraries(), compiled_templates():
        evaluation = _prepare(config, text)
        results = [evaluation.run(*model) for model in directories.items()]
    if config.baseline is not None:
        first, *others = results
        results = [first, *(compare(other, first) for other in others)]
    result = EvaluationResult(
        models=tuple(results),
        baseline=config.baseline,
        exam=evaluation.selection.exam if evaluation.selection else None,
        options=config.record(),
    )
    if output is not None:
        write_results(result, output)
    return result


@dataclass(frozen=True)
class _Text:
    """A text whose perplexity is measured, and its file."""

    file: str
    text: str

    @classmethod
    def read(cls, path: Path, size: int | None) -> "_Text":
        """Read the words within the first ``size`` bytes of a file, or the whole file."""
        try:
            with path.open("rb") as file:
                content = file.read(-1 if size is None else size)
                cut = bool(file.read(1))
            text = codecs.getincrementaldecoder("utf-8")().decode(content, final=not cut)
        except OSError as error:
            raise InputError(f"`perplexity={path}`: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"`perplexity={path}`: not UTF-8 text (byte {error.start}: {error.reason})"
            ) from error
        if cut and text[-1:].isspace():
            text = text.rstrip()
        elif cut:  # the last word may be incomplete
            text = "".join(text.rsplit(maxsplit=1)[:-1])
        if not text:
            begins = "the file is empty" if not cut else f"no word ends within {size:,} bytes"
            raise InputError(f"`perplexity={path}`: {begins}")
        return cls(str(path), text)

    @property
    def bytes(self) -> int:
        return len(self.text.encode())

    @property
    def words(self) -> int:
        """As lm-eval counts words for its perplexities."""
        return len(re.split(r"\s+", self.text))


@dataclass(frozen=True)
class _Evaluation:
    """Evaluates one model after another on the same tasks and the same text."""

    config: EvalConfig
    selection: "TaskSelection | None"
    text: _Text | None
    device: "torch.device"
    dtype: "torch.dtype | None"

    def run(self, name: str, directory: Path) -> ModelResult:
        """Load a model, evaluate it, and release its memory."""
        from hybridize.evals.backends import load_model_and_tokenizer
        from hybridize.evals.harness_model import HarnessModel
        from hybridize.modeling.cache.format import CacheFormat

        start = time.perf_counter()
        model, tokenizer = load_model_and_tokenizer(
            directory,
            backend=self.config.backend,
            device=self.device,
            dtype=self.dtype,
            cache_format=CacheFormat(self.config.kv_cache_dtype, self.config.ssm_cache_dtype),
        )
        harness_model = HarnessModel(
            model,
            tokenizer,
            batch_size=self.config.batch_size,
            max_length=self.config.max_length,
        )
        # The text comes first: it takes less time, and an error in it ends the run early.
        perplexity = self._measure_perplexity(harness_model)
        results = self._run_tasks(name, harness_model)
        scores = read_scores(results.pop("samples", {}))
        return ModelResult(
            model=name,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(self.device),
            metrics=read_metrics(results),
            perplexity=perplexity,
            prompts=harness_model.prompts,
            truncated_prompts=harness_model.truncated,
            seconds=time.perf_counter() - start,
            lm_eval=results,
            scores=scores,
        )

    def _run_tasks(self, name: str, model: "HarnessModel") -> dict[str, Any]:
        from hybridize.evals.harness import no_results, run_harness

        model_args = {"pretrained": name, "dtype": str(model.model.dtype).removeprefix("torch.")}
        if self.selection is None:
            return no_results(model_args)
        return run_harness(
            model,
            self.selection,
            source=self.config.backend,
            model_args=model_args,
            num_fewshot=self.config.num_fewshot,
            limit=self.config.limit,
            seed=self.config.seed,
        )

    def _measure_perplexity(self, model: "HarnessModel") -> Perplexity | None:
        if self.text is None:
            return None
        window = self.config.max_length or min(model.max_length, PERPLEXITY_WINDOW)
        log_likelihood, tokens = model.score_text(self.text.text, window)
        return Perplexity(
            file=self.text.file,
            bytes=self.text.bytes,
            words=self.text.words,
            tokens=tokens,
            window=window,
            nats_per_token=-log_likelihood / tokens,
        )


def _prepare(config: EvalConfig, text: _Text | None) -> _Evaluation:
    """Choose the device and build the tasks."""
    from hybridize.evals.tasks import select_tasks
    from hybridize.modeling.devices import choose_device, choose_dtype

    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    selection = None
    if config.tasks:
        exam = None if config.mmlu_dir is None else Path(config.mmlu_dir)
        selection = select_tasks(config.tasks, mmlu_dir=exam, num_fewshot=config.num_fewshot)
    return _Evaluation(config, selection, text, device, dtype)
