"""The options of `hybridize.evaluate`."""

from dataclasses import dataclass

from typing_extensions import override

from hybridize.errors import InputError
from hybridize.option_types import Choice, Integer, Listed, Location, Size, Text
from hybridize.options import (
    Config,
    device_option,
    dtype_option,
    force_option,
    kv_cache_dtype_option,
    option,
    output_file_option,
    ssm_cache_dtype_option,
)

DEFAULT_TASKS = ("mmlu",)
BACKENDS = ("hybridize", "transformers")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config):
    """The tasks and the text that models are evaluated on, and how the models run."""

    tasks: tuple[str, ...] | None = option(
        Listed(Text("NAME"), "NAME,…"),
        None,
        help="Names of lm-eval's tasks, or recall or recall_needles: questions about facts in the "
        "context.",
        default_text="mmlu; none with `perplexity` alone",
    )
    mmlu_dir: str | None = option(
        Location("DIR"),
        None,
        help="Read mmlu and mmlu_continuation, or another exam in MMLU's layout, from "
        "DIR/dev/SUBJECT_dev.csv and DIR/test/SUBJECT_test.csv instead of the hub.",
    )
    baseline: str | None = option(
        Location("MODEL"),
        None,
        help="Evaluate this model first and compare the other models with it.",
    )
    perplexity: str | None = option(
        Location("FILE"), None, help="Measure the perplexity on this text file (UTF-8)."
    )
    perplexity_size: int | None = option(
        Size(),
        None,
        help="Read only the beginning of the text, such as 64KB.",
        default_text="the whole text",
    )
    num_fewshot: int | None = option(
        Integer(0),
        None,
        help="Number of solved questions in each prompt.",
        default_text="5 for MMLU, else the task's own",
    )
    limit: int | None = option(
        Integer(1),
        None,
        help="Ask only the first N questions of each task; each subject of MMLU is a task.",
    )
    output: str | None = output_file_option(
        "Write the results to this JSON file, in the layout of lm-eval's results files."
    )
    force: bool = force_option()
    batch_size: int = option(
        Integer(1),
        8,
        help="Maximum number of sequences (prompts with an answer) in a forward pass.",
    )
    max_length: int | None = option(
        Integer(2),
        None,
        help="Maximum number of tokens in a prompt. Longer prompts are cut at the beginning.",
        default_text="the model's maximum; at most 4096 for `perplexity`",
    )
    device: str = device_option()
    dtype: str = dtype_option(
        "Dtype of the weights and the computation; auto is float32 on a CPU, else the checkpoint's."
    )
    backend: str = option(
        Choice(*BACKENDS),
        "hybridize",
        help="What runs the model: hybridize's own code or the model class of transformers.",
    )
    seed: int | None = option(
        Integer(0, 2**32 - 1), None, help="Random seed.", default_text="lm-eval's own seeds"
    )
    kv_cache_dtype: str = kv_cache_dtype_option()
    ssm_cache_dtype: str = ssm_cache_dtype_option()

    @override
    def check_options(self) -> None:
        if self.tasks is None:
            only_text = self.perplexity is not None and self.mmlu_dir is None
            self._set("tasks", () if only_text else DEFAULT_TASKS)
        if not self.tasks and self.perplexity is None:
            raise InputError("`tasks`: name at least one task, or give a text with `perplexity`")
        if self.perplexity_size is not None and self.perplexity is None:
            raise InputError("`perplexity_size` needs `perplexity`, the text that it shortens")
        compact = (self.kv_cache_dtype, self.ssm_cache_dtype) != ("auto", "auto")
        if compact and self.backend == "transformers":
            raise InputError(
                "`kv_cache_dtype` and `ssm_cache_dtype` work with `backend=hybridize` only"
            )
