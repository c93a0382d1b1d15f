"""The errors a user can meet, each carrying the exit code it ends with.

A message is one line that names the file or option, says what is wrong, and
says what to do. The command line prints it as it is; only ``--debug`` shows a
traceback.
"""


class HybridizeError(Exception):
    """A run that failed for a reason the user can act on (exit code 1)."""

    exit_code = 1


class InputError(HybridizeError):
    """An input or an option that is wrong; nothing was written (exit code 2)."""

    exit_code = 2
