"""The option ``check``: checking the result if it is possible, and saying why if it is not.

Torch and transformers are imported when something is checked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hybridize.checkpoints.streaming_writer import PlannedCheckpoint
from hybridize.conversion.check_report import CannotCheckError, CheckReport
from hybridize.conversion.config import ConvertConfig
from hybridize.conversion.plan import Plan
from hybridize.conversion.source import Source
from hybridize.errors import HybridizeError, InputError

if TYPE_CHECKING:
    from hybridize.conversion.check import ConversionCheck


BY_DEFAULT = True
"""Whether results are checked if nobody asks for it. Tests of other things set False."""


def require_check(source: Source, output: Path, config: ConvertConfig) -> None:
    """Check early that the source can be checked, if the user asks for it.

    Raises:
        InputError: it cannot.
    """
    if not config.check:
        return
    from hybridize.conversion.check import require_possible

    try:
        require_possible(source, source.config, output)
    except CannotCheckError as error:
        raise InputError(_refused(source, error)) from error


class OutputCheck:
    """Checks the source at once, and the result when it is written.

    Args:
        source: the source.
        plan: the plan of the conversion.
        planned: the tensors of the result.
        output: the final name of the result.
        config: the options.

    Attributes:
        report: what was compared, or why nothing was; None with ``check=False``.

    Raises:
        InputError: the user asks for the check, and it is not possible.
        HybridizeError: hybridize and transformers compute different logits.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        planned: PlannedCheckpoint,
        output: Path,
        config: ConvertConfig,
    ) -> None:
        self.report: CheckReport | None = None
        self._source, self._required = source, bool(config.check)
        self._check: ConversionCheck | None = None
        if not (BY_DEFAULT if config.check is None else config.check):
            return
        if config.allow_nonfinite:
            self.report = CheckReport(skipped="the weights may have NaN or infinity in them")
            return
        from hybridize.conversion import check

        with self._if_possible(InputError):
            check.require_possible(source, plan.fit.spec, output)
            started = check.ConversionCheck(source, plan, planned, output)
            started.check_source()
            self._check = started

    def check_result(self, directory: Path) -> None:
        """Check the written result, which does not have its final name yet.

        Raises:
            HybridizeError: the result is wrong, or the memory is full and the user asks for the
                check.
        """
        if self._check is None:
            return
        with self._if_possible(HybridizeError):
            self.report = self._check.check_result(directory)

    @contextmanager
    def _if_possible(self, refusal: type[HybridizeError]) -> Iterator[None]:
        try:
            yield
        except CannotCheckError as error:
            if self._required:
                raise refusal(_refused(self._source, error)) from error
            self.report = replace(self.report or CheckReport(), skipped=str(error))


def _refused(source: Source, error: CannotCheckError) -> str:
    return f"`check`: {source.directory} cannot be checked: {error}; leave out `check`"
