"""What a benchmark found, as typed objects."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

AS_MANY_AS_FIT = 0
"""In place of a batch size: for each model, as many sequences as its GPU has room for."""


@dataclass(frozen=True)
class Point:
    """One place of the grid: ``batch_size`` sequences of ``prompt_len`` and ``gen_len`` tokens."""

    prompt_len: int
    gen_len: int
    batch_size: int

    @property
    def context(self) -> int:
        """Tokens that a cache holds in the end: nobody looks at the last one."""
        return self.prompt_len + self.gen_len - 1

    def __str__(self) -> str:
        return f"{self.batch_size} × {self.prompt_len:,} + {self.gen_len:,} tokens"


@dataclass(frozen=True)
class Spread:
    """A figure that was measured several times.

    Attributes:
        median: of all repeats.
        low, high: their first and third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Summarize samples, at least one."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)

    @property
    def deviation(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Ratios:
    """Tokens a second over the baseline's, taken repeat by repeat; above 1 is better."""

    prefill: Spread
    decode: Spread
    throughput: Spread


@dataclass(frozen=True)
class BenchRow:
    """One model at one point.

    Attributes:
        model: as the user named it.
        backend: what ran it.
        decoding: ``"eager"`` (every operation launched in its turn) or ``"graph"`` (a recorded step
            replayed).
        point: the sizes.
        first_token: seconds from the prompt to the first new token, for the whole batch.
        prefill: prompt tokens per second, all sequences together.
        decode: new tokens per second, all sequences together, after the first.
        decode_each: new tokens per second of one sequence.
        throughput: new tokens per second over prefill and decode together.
        weight_bytes: what the parameters take, shared ones once.
        peak_bytes: the weights and the most that the run took beside them; None where the system
            does not tell.
        kv_bytes: keys and values at the end, all sequences together.
        state_bytes: SSM states and convolution windows, likewise.
        ratios: to the baseline at the same point; None for the baseline and where there is none.
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
    """All rows, and what is needed to understand them.

    Attributes:
        rows: by point; within one, the baseline first.
        baseline: its name.
        machine: what ran it, see `describe_machine`.
        commit: of the repository that it was run in; None outside of one.
        options: as given.
    """

    rows: tuple[BenchRow, ...]
    baseline: str | None
    machine: dict[str, Any]
    commit: str | None
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them."""
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
