"""Everything that decides what a pruning does, beside its model and the machine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hybridize.checkpoints.formats import FORMATS
from hybridize.compress.prune.axes import AXES
from hybridize.compress.prune.budget import Budget, parse_memory, parse_parameters
from hybridize.compress.prune.latency import Latency, latency_budget
from hybridize.compress.prune.search import DEPTH
from hybridize.data.source import TEACHER
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.devices import DTYPES

ALL_AXES = (DEPTH, *AXES)
WIDTHS = ("uniform", "per-block")
_USUAL_TOKENS = 200_000


@dataclass(frozen=True)
class PruneSettings:
    """Settings, with the defaults of the command line.

    Attributes:
        params: the most parameters: a share (``"70%"``) or a number (``"1.3B"``).
        memory: the most memory of weights, cache and states, ``SIZE@CONTEXT[xBATCH]``, such as
            ``"24GiB@65536x4"``, in the dtype that is stored.
        weight_bits, kv_bits: bits that the blocks' linear weights, and keys and values, are going
            to have once quantized, for ``memory``; as stored if None.
        latency: the most time of a decoding step, as a share of the model's own on this machine,
            ``SHARE[@CONTEXT[xBATCH]]``, such as ``"0.7@65536"``. All budgets have to hold.
        axes: what may be cut: ``depth`` and names of `compress.prune.axes.AXES`.
        widths: ``uniform``, or ``per-block`` for widths of each block's own, which hybridize's own
            format alone holds.
        calibration: text that importance is measured on: a file, a dataset, or ``teacher``,
            which lets the model write it.
        calibration_tokens: how much of it; a quarter is kept for measuring candidates.
        candidates: how many architectures to cut and measure.
        distill_top: how many of them to distill before one is chosen; 0 for none.
        tokens: what each of them trains on; 200,000 if None.
        multiple_of: what hidden size and MLP width are multiples of; about a sixteenth of the
            size if None.
        offload: hold one block in memory at a time; the best candidate is then the one that is
            expected to be, as measuring needs the whole model.
        format: ``auto`` or a format's name.
        dtype: ``auto`` (as in the source), ``float32``, ``bfloat16`` or ``float16``.
        seed: of all chance.
    """

    params: str | None = None
    memory: str | None = None
    weight_bits: int | None = None
    kv_bits: int | None = None
    latency: str | None = None
    axes: tuple[str, ...] = ALL_AXES
    widths: str = "uniform"
    calibration: str = TEACHER
    calibration_tokens: int = 16_384
    candidates: int = 16
    distill_top: int = 0
    tokens: int | None = None
    multiple_of: int | None = None
    offload: bool = False
    format: str = "auto"
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.params is self.memory is self.latency is None:
            raise InputError(
                "give a budget: --params 70%, --memory 24GiB@65536 or --latency 0.7, or several"
            )
        unknown = [axis for axis in self.axes if axis not in ALL_AXES]
        if unknown or not self.axes:
            raise InputError(
                f"--axes {unknown[0] if unknown else ''}: choose some of {', '.join(ALL_AXES)}"
            )
        self._check_numbers()
        for option, value, choices in (
            ("--widths", self.widths, WIDTHS),
            ("--format", self.format, ("auto", *FORMATS)),
            ("--dtype", self.dtype, ("auto", *DTYPES)),
        ):
            if value not in choices:
                raise InputError(f"{option} {value}: choose one of {', '.join(choices)}")
        if self.memory is None and (self.weight_bits, self.kv_bits) != (None, None):
            raise InputError("--weight-bits and --kv-bits go with --memory")
        if self.tokens is not None and not self.distill_top:
            raise InputError("--tokens goes with --distill-top")
        if self.offload and self.distill_top:
            raise InputError("--distill-top trains whole models; leave --offload out")
        if self.distill_top > self.candidates:
            raise InputError(
                f"--distill-top {self.distill_top}: there are {self.candidates} --candidates"
            )
        if self.widths == "per-block" and self.format not in ("auto", "hybridize"):
            raise InputError(
                f"--format {self.format}: only hybridize holds --widths per-block; leave one out"
            )

    def _check_numbers(self) -> None:
        for option, value, least in (
            ("--candidates", self.candidates, 1),
            ("--distill-top", self.distill_top, 0),
            ("--tokens", self.tokens, 1),
            ("--multiple-of", self.multiple_of, 1),
            ("--weight-bits", self.weight_bits, 1),
            ("--kv-bits", self.kv_bits, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"{option} {value}: it must be at least {least}")

    @property
    def tokens_of_each(self) -> int:
        """What each candidate of ``distill_top`` trains on."""
        return _USUAL_TOKENS if self.tokens is None else self.tokens

    def budgets(
        self,
        config: HybridConfig,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
        known: Mapping[str, Any] | None = None,
    ) -> list[Budget]:
        """Return what a model has to stay within.

        Args:
            config: the model.
            width: bytes per element of its weights as they will be stored.
            device, dtype: where and in which dtype blocks are timed.
            known: the fields of a `Latency` that was measured before.

        Raises:
            InputError: one of them is not understood.
        """
        found: list[Budget] = []
        if self.params is not None:
            found.append(parse_parameters(self.params, config))
        if self.memory is not None:
            bits = {"weight_bits": self.weight_bits, "kv_bits": self.kv_bits}
            found.append(parse_memory(self.memory, width, **bits))
        if self.latency is not None and known is not None:
            found.append(Latency(**known))
        elif self.latency is not None:
            wanted = (self.axes, self.multiple_of, device, dtype)
            found.append(latency_budget(self.latency, config, *wanted))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return asdict(self) | {"axes": list(self.axes)}
