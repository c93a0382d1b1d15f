"""The results of a benchmark."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

AS_MANY_AS_FIT = 0
"""The batch size that means: for each model, the largest batch that fits into the GPU's memory."""


@dataclass(frozen=True)
class Point:
    """A point of the grid: ``batch_size`` sequences of ``prompt_len`` + ``gen_len`` tokens."""

    prompt_len: int
    gen_len: int
    batch_size: int

    @property
    def context(self) -> int:
        """Number of tokens in the cache at the end; the last new token never enters it."""
        return self.prompt_len + self.gen_len - 1

    def __str__(self) -> str:
        return f"{self.batch_size} × {self.prompt_len:,} + {self.gen_len:,} tokens"


@dataclass(frozen=True)
class Spread:
    """A quantity that was measured several times.

    Attributes:
        median: the median.
        low, high: the first and the third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Summarize one or more samples."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)

    @property
    def deviation(self) -> float:
        """Half the interquartile range, relative to the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Ratios:
    """Tokens per second relative to the baseline, computed per round; above 1 is faster."""

    prefill: Spread
    decode: Spread
    throughput: Spread


@dataclass(frozen=True)
class BenchRow:
    """One model at one point.

    Attributes:
        model: the user's name of the model.
        backend: the backend that ran it.
        decoding: ``"eager"`` (every operation is launched separately) or ``"graph"`` (a recorded
            step is replayed).
        point: the sizes.
        first_token: seconds from the prompt to the first new token, for the whole batch.
        prefill: prompt tokens per second of the whole batch.
        decode: new tokens per second of the whole batch, without the first of each sequence.
        decode_each: new tokens per second of one sequence.
        throughput: new tokens per second of the whole batch, prefill included.
        weight_bytes: size of the parameters; shared ones count once.
        peak_bytes: the weights plus the peak of the other memory; None where it is unknown.
        kv_bytes: size of the keys and values of the whole batch at the end.
        state_bytes: size of the SSM states and convolution states of the whole batch.
        ratios: relative to the baseline at the same point; None for the baseline and without one.
    """

    model: str
    backend: str
    decoding: str
    point: Point
    first_token: Spread
    prefill: Spread
    decode: Spread
    decode_each: Spread
    throughput: Spread
    weight_bytes: int
    peak_bytes: int | None
    kv_bytes: int
    state_bytes: int
    ratios: Ratios | None = None


@dataclass(frozen=True)
class BenchResult:
    """All rows, and the circumstances of the measurement.

    Attributes:
        rows: by point; at each point, the baseline first.
        baseline: the baseline's name; None without one.
        machine: the machine, see `describe_machine`.
        commit: the commit of the repository in the working directory; None outside of one.
        options: the options of the benchmark.
    """

    rows: tuple[BenchRow, ...]
    baseline: str | None
    machine: dict[str, Any]
    commit: str | None
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the results for JSON."""
        from importlib.metadata import version

        return {
            "hybridize": {
                "version": version("hybridize"),
                "command": "bench",
                "commit": self.commit,
                "options": self.options,
            },
            "machine": self.machine,
            "baseline": self.baseline,
            "rows": [asdict(row) for row in self.rows],
        }
