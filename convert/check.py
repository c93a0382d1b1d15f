"""The check of a conversion: transformers and hybridize must compute the same logits.

Before the result is written, the source is run in transformers and in hybridize. When it is
written, and before it gets its final name, it is run in both as well, and compared with the source.
One model is in memory at a time.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from hybridize.checkpoints.dtypes import torch_dtype
from hybridize.checkpoints.memory import available_memory
from hybridize.checkpoints.stock_model import is_stock
from hybridize.checkpoints.streaming_writer import PlannedCheckpoint
from hybridize.console import console
from hybridize.conversion.check_failures import ADVICE, Places, require_equal, require_finite
from hybridize.conversion.check_inputs import LENGTH, check_inputs
from hybridize.conversion.check_models import CheckedModel, Computed, Reference, largest
from hybridize.conversion.check_report import (
    CONVERSION,
    RESULT,
    SOURCE,
    CannotCheckError,
    CheckReport,
    Comparison,
    without_folders,
)
from hybridize.conversion.plan import Plan
from hybridize.conversion.source import Source
from hybridize.errors import HybridizeError, first_line, is_out_of_memory
from hybridize.modeling.model_spec import ModelSpec, parameter_shapes
from hybridize.units import size_in_words

_OVERHEAD = 256 << 20
"""Bytes for the buffers of the libraries."""

_FLOAT16_MAX = torch.finfo(torch.float16).max


def require_possible(source: Source, target: ModelSpec, output: Path) -> None:
    """Check whether a conversion can be checked, before anything is loaded.

    Args:
        source: the source.
        target: the result.
        output: its directory.

    Raises:
        CannotCheckError: the source is too large for the memory, or transformers does not know its
            ``model_type`` or cannot open a directory.
    """
    for directory in (source.directory, output):
        try:
            str(directory).encode()
        except UnicodeEncodeError:
            raise CannotCheckError("transformers opens no path that is not UTF-8") from None
    if not is_stock(source.format.name):
        raise CannotCheckError(f"transformers has no class for model_type {source.format.name!r}")
    free, needed = available_memory(), max(_needed_bytes(source.config), _needed_bytes(target))
    if free is None:
        raise CannotCheckError("the system does not say how much memory is free")
    if needed > free:
        raise CannotCheckError(
            f"it needs {size_in_words(needed)} of memory, and {size_in_words(free)} are free"
        )


def _needed_bytes(spec: ModelSpec) -> int:
    """Return the memory for one model in float32, and for what is kept of the inputs.

    Memory is allocated in large pages, so that a model takes a little more than its weights.
    """
    kept = LENGTH * (3 * spec.vocab_size + 3 * spec.hidden_size * (len(spec.blocks) + 1))
    return int(4 * (1.2 * parameter_count(spec) + 5 * kept)) + _OVERHEAD


def parameter_count(spec: ModelSpec) -> int:
    """Return a model's number of parameters."""
    return sum(map(math.prod, parameter_shapes(spec).values()))


class ConversionCheck:
    """Compares the source and the result of a conversion, in transformers and in hybridize.

    Args:
        source: the source.
        plan: the plan of the conversion.
        planned: the tensors of the result.
        output: the final name of the result; errors name it.
    """

    def __init__(
        self, source: Source, plan: Plan, planned: PlannedCheckpoint, output: Path
    ) -> None:
        self._source, self._plan, self._output = source, plan, output
        self._dtypes = {spec.dtype for spec in planned.specs}
        parameters = max(parameter_count(source.config), parameter_count(plan.fit.spec))
        self._inputs, unreached = check_inputs(source.config, source.directory, parameters)
        self._unreached = list(unreached)
        self._comparisons: list[Comparison] = []
        self._references: list[Reference] = []

    def check_source(self) -> None:
        """Compare the source in transformers and in hybridize.

        Raises:
            CannotCheckError: transformers cannot open or run the source, or the memory is full.
            HybridizeError: the logits differ, or are not finite.
        """
        source, name = self._source, str(self._source.directory)
        places = Places(source.format, source.config)
        with console.progress("checking the source", 2, "models") as progress:
            try:
                stock = CheckedModel.in_transformers(source.directory, source.format, source.config)
                references = [stock.reference(given) for given in self._inputs]
                # The result may have rounded weights. Then it is compared with a rounded source.
                rounded = stock.round_weights(self._rounding())
                self._references = (
                    [stock.reference(given) for given in self._inputs] if rounded else references
                )
            except Exception as error:  # transformers raises a different type for every fault
                reason = without_folders(_reason(error), source.directory)
                raise CannotCheckError(f"transformers cannot run it: {reason}") from error
            for given, reference in zip(self._inputs, references, strict=True):
                require_finite(reference.computed, given, places, f"{name}: in transformers")
            stock.free()
            progress.advance()
            with _our_failures(name):
                ours = CheckedModel.in_hybridize(source.directory)
                computed = [ours.compute(given) for given in self._inputs]
            ours.free()
            failure = f"{name}: hybridize and transformers compute different logits"
            self._compare_all(SOURCE, references, computed, places, failure)
            progress.advance()

    def check_result(self, directory: Path) -> CheckReport:
        """Compare the written result in transformers and in hybridize, and with the source.

        Args:
            directory: the result, which does not have its final name yet.

        Raises:
            CannotCheckError: the memory is full.
            HybridizeError: transformers cannot open the result, the logits differ, or are not
                finite.
        """
        plan, name = self._plan, str(self._output)
        places = Places(plan.format, plan.fit.spec)
        with (
            console.progress("checking the result", 2, "models") as progress,
            _final_name(directory, self._output),
        ):
            with _failures(f"{name}: transformers cannot run the result"):
                stock = CheckedModel.in_transformers(directory, plan.format, plan.fit.spec)
                references = [stock.reference(given) for given in self._inputs]
            stock.free()
            progress.advance()
            for given, reference in zip(self._inputs, references, strict=True):
                require_finite(reference.computed, given, places, f"{name}: in transformers")
            with _our_failures(name):
                ours = CheckedModel.in_hybridize(directory)
                computed = [ours.compute(given) for given in self._inputs]
                converted = [
                    self._converted(index, reference.computed, ours)
                    for index, reference in enumerate(references)
                ]
            ours.free()
            failure = f"{name}: hybridize and transformers compute different logits for the result"
            self._compare_all(RESULT, references, computed, places, failure)
            failure = f"{name}: what was copied computes other logits than {self._source.directory}"
            self._compare_all(CONVERSION, self._references, converted, places, failure)
            progress.advance()
        return CheckReport(
            tuple(self._comparisons), tuple(self._unreached), notes=self._overflow(computed)
        )

    def _converted(self, index: int, stock: Computed, ours: CheckedModel) -> Computed | None:
        """Return what the result computes, if it must be the same as the source.

        Args:
            index: the index of the input.
            stock: what the result computes in transformers.
            ours: the result in hybridize. If blocks were swapped, it runs with the source's
                activations behind each new block, so that what was copied must compute the same.

        Returns:
            None where it need not be the same: beyond a sliding window that the format lacks. None
            too for long inputs, because the activations at all tokens are not kept.
        """
        given, states = self._inputs[index], self._references[index].computed.states
        window = None if self._plan.fit.exact else self._source.config.sliding_window
        if window is not None and given.length > window:
            return None
        if not self._plan.layout.swapped:
            return stock
        if not given.is_whole:
            return None
        outputs = {block: states[block + 1] for block in self._plan.layout.swapped}
        return ours.compute(given, outputs=outputs)

    def _compare_all(
        self,
        compared: str,
        references: list[Reference],
        others: "list[Computed] | list[Computed | None]",
        places: Places,
        failure: str,
    ) -> None:
        """Compare on every input.

        Raises:
            HybridizeError: a difference is larger than rounding; the message begins with
                ``failure`` and names the first block that differs.
        """
        for given, reference, other in zip(self._inputs, references, others, strict=True):
            if other is None:
                continue
            require_finite(other, given, places, failure)
            require_equal(reference, other, given, places, failure)
            difference = largest(other.logits - reference.computed.logits)
            self._comparisons.append(Comparison(compared, given.name, difference, reference.logits))

    def _rounding(self) -> torch.dtype | None:
        """Return the dtype to which the conversion rounds weights; None if it rounds none."""
        dtypes = self._dtypes & {"bfloat16", "float16"}
        before = {self._source.reader.dtype(name) for name in self._source.reader.names}
        return torch_dtype(dtypes.pop()) if len(self._dtypes) == 1 and dtypes - before else None

    def _overflow(self, computed: list[Computed]) -> tuple[str, ...]:
        """Return a note if the weights are float16, and the activations too large for it."""
        highest = max(largest(one.states) for one in computed)
        if "float16" not in self._dtypes or highest <= _FLOAT16_MAX:
            return ()
        return (
            f"activations reach {highest:.2g}, and float16 ends at {_FLOAT16_MAX:,.0f}; run the "
            "result in float32 or bfloat16, or write it with `dtype=bfloat16`",
        )


def _reason(error: Exception) -> str:
    text = first_line(error)
    return text if isinstance(error, HybridizeError) else f"{type(error).__name__}: {text}"


def _our_failures(name: str) -> AbstractContextManager[None]:
    return _failures(f"{name}: transformers can run it, and hybridize cannot")


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn every exception into an error that says what failed, or that the memory is full."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise CannotCheckError(f"not enough memory ({first_line(error)})") from error
        raise HybridizeError(f"{what}: {_reason(error)}; {ADVICE}") from error


@contextmanager
def _final_name(directory: Path, output: Path) -> Iterator[None]:
    """Let errors name the output instead of the working directory, which will be gone."""
    try:
        yield
    except HybridizeError as error:
        text = str(error).replace(str(directory), str(output))
        raise type(error)(text) from error
