"""The ``hybridize`` command: run a sub-command, and report each failure in one line.

Exit codes: 0 done, 1 the run failed, 2 an input or an option is wrong, 128 + n stopped by signal n
(130 by Ctrl-C), 141 the program that reads the output has ended.
"""

import os
import sys
from collections.abc import Sequence

import click

from hybridize.cli import ReaderEndedError, cli
from hybridize.console import console
from hybridize.errors import HybridizeError, is_out_of_memory
from hybridize.interrupts import Stopped, check_stopped, stop_on_signals, uninterrupted
from hybridize.output_files import remove_unfinished
from hybridize.standard_streams import discard_unwritten, prepare_streams

FAILED, MISUSED, INTERRUPTED, READER_ENDED = 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after ``hybridize``; None for those of this process.

    Returns:
        The process's exit code.
    """
    console.debug = False
    prepare_streams()
    _configure_libraries()
    with stop_on_signals():
        try:
            try:
                return _run(arguments)
            finally:
                with uninterrupted():
                    remove_unfinished()
                    discard_unwritten()
        except Stopped as stopped:
            _print_traceback(stopped)
            return _report_stop(stopped)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(arguments, prog_name="hybridize", standalone_mode=False)
        sys.stdout.flush()  # so that a full disk or a closed pipe raises here and not at exit
        check_stopped()
    except (Exception, KeyboardInterrupt) as failure:
        _print_traceback(failure)
        discard_unwritten()
        return _report(failure)
    return result if isinstance(result, int) else 0


def _print_traceback(failure: BaseException) -> None:
    if console.debug:
        import traceback

        traceback.print_exception(failure)


def _report_stop(stopped: Stopped) -> int:
    """Print one line that says what is left of a stopped command, and return the exit code.

    Of several processes that torchrun has started, the first one prints it.
    """
    if os.environ.get("RANK", "0") != "0":
        return 128 + stopped.signum
    notes = getattr(stopped, "__notes__", None) or ["no unfinished output is left; run it again"]
    console.notice(f"{stopped}; {notes[-1]}")
    return 128 + stopped.signum


def _report(failure: Exception | KeyboardInterrupt) -> int:
    """Print one line that says what went wrong, and return the exit code."""
    match failure:
        case HybridizeError():
            console.error(str(failure))
            return failure.exit_code
        case click.exceptions.NoArgsIsHelpError():
            failure.show()
            return MISUSED
        case click.UsageError():
            command = failure.ctx.command_path if failure.ctx else "hybridize"
            console.error(f"{failure.format_message().rstrip('.')} (try '{command} --help')")
            return MISUSED
        case click.ClickException():
            console.error(failure.format_message())
            return failure.exit_code
        case click.Abort() | KeyboardInterrupt():
            console.error("interrupted")
            return INTERRUPTED
        case ReaderEndedError() | BrokenPipeError():
            return READER_ENDED
        case OSError():
            console.error(_describe(failure))
            return FAILED
        case _ if is_out_of_memory(failure):
            reason = (str(failure).splitlines() or ["a tensor is too large"])[0]
            console.error(
                f"not enough memory ({reason}); a smaller batch or shorter texts need less"
            )
            return FAILED
        case _:
            message = ": ".join(filter(None, [type(failure).__name__, str(failure)]))
            hint = "" if console.debug else " (run again with --debug for the traceback)"
            console.error(message + hint)
            return FAILED


def _describe(failure: OSError) -> str:
    if failure.strerror is None:  # raised by a library with its own message
        return str(failure) or type(failure).__name__
    return f"{failure.filename}: {failure.strerror}" if failure.filename else failure.strerror


def _configure_libraries() -> None:
    """Set what transformers, huggingface_hub and torch read from the environment.

    The first two report errors only. Large pages save most page faults on large tensors. Without a
    terminal, hub downloads show no progress bars. Values that the user has set are kept.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


if __name__ == "__main__":
    sys.exit(main())
