"""The options of `hybridize.bench` and `hybridize.predict`."""

from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from hybridize.evals.bench.gpus import GPUS
from hybridize.evals.config import BACKENDS
from hybridize.option_types import Choice, Integer, IntegerOr, Listed, Location
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

DECODINGS = ("auto", "eager", "graph")
LARGEST_SIZE = 1 << 31
"""Larger than any number of tokens or sequences that fits into a machine."""

SIZES: dict[str, dict[str, Any]] = {
    "quick": {"prompt_len": (512, 2048), "gen_len": 32, "batch_size": (1,)},
    # arXiv 2504.03624, figure 1
    "paper": {"prompt_len": (65536,), "gen_len": 1024, "batch_size": ("max",)},
}
"""Prompt length, number of new tokens and batch size of each preset."""

_PROMPT_LEN = Integer(1, LARGEST_SIZE)
_GEN_LEN = Integer(2, LARGEST_SIZE)
_BATCH_SIZE = IntegerOr("max", Integer(1, LARGEST_SIZE))


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Config):
    """What to measure, and how often."""

    prompt_len: tuple[int, ...] | None = option(
        Listed(_PROMPT_LEN, "N,…", at_least=1),
        None,
        help="Lengths of the prompts, in tokens.",
        default_text="512,2048; 65536 with `preset=paper`",
    )
    gen_len: int | None = option(
        _GEN_LEN,
        None,
        help="Number of new tokens per sequence. The prefill produces the first of them.",
        default_text="32; 1024 with `preset=paper`",
    )
    batch_size: tuple[Any, ...] | None = option(
        Listed(_BATCH_SIZE, "N,…|max", at_least=1),
        None,
        help="Numbers of sequences in a batch; max is as many as fit into the GPU's memory.",
        default_text="1; max with `preset=paper`",
    )
    preset: str = option(
        Choice(*SIZES),
        "quick",
        help="Default sizes. quick: short prompts, one sequence. paper: the sizes of figure 1 of "
        "the Nemotron-H paper: 65,536 prompt tokens, 1,024 new tokens, the largest batch.",
    )
    baseline: str | None = option(
        Location("MODEL"), None, help="Also measure this model, and show the others relative to it."
    )
    backend: tuple[str, ...] = option(
        Listed(Choice(*BACKENDS), "NAME,…", at_least=1),
        ("hybridize",),
        help="What runs the models: hybridize, transformers, or both in turn.",
    )
    decoding: str = option(
        Choice(*DECODINGS),
        "auto",
        help="How decoding steps run. eager: every operation is launched separately. graph: a "
        "step is recorded as a CUDA graph and replayed. auto: graph where that is possible.",
    )
    repeats: int = option(
        Integer(1), 5, help="Number of measured rounds, after one round to warm up."
    )
    output: str | None = output_file_option("Write the results to this file, as JSON.")
    plot: str | None = option(
        Location("FILE"), None, recorded=False, help="Write the results as a plot (PNG)."
    )
    force: bool = force_option()
    device: str = device_option()
    dtype: str = dtype_option(
        "Dtype of the weights and the computation; auto is float32 on a CPU, else the checkpoint's."
    )
    kv_cache_dtype: str = kv_cache_dtype_option()
    ssm_cache_dtype: str = ssm_cache_dtype_option()
    seed: int = option(Integer(0, 2**32 - 1), 0, help="Random seed of the prompts.")

    @override
    def check_options(self) -> None:
        for name, value in SIZES[self.preset].items():
            if getattr(self, name) is None:
                self._set(name, value)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """The GPUs and the sizes of a prediction."""

    gpu: str = option(Choice(*GPUS), help="The GPU whose data sheet sets the limits.")
    gpus: int = option(Integer(1, LARGEST_SIZE), 1, help="Number of GPUs that share a model.")
    prompt_len: int = option(_PROMPT_LEN, 65536, help="Length of the prompts, in tokens.")
    gen_len: int = option(_GEN_LEN, 1024, help="Number of new tokens per sequence.")
    batch_size: int | str = option(
        _BATCH_SIZE, "max", help="Number of sequences in a batch; max is as many as fit."
    )
    baseline: str | None = option(
        Location("MODEL"), None, help="Also predict this model, and show the others relative to it."
    )
