"""Which commit a figure comes from."""

import subprocess


def current_commit() -> str | None:
    """Return the commit of the repository we stand in, as lm-eval records it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always"], capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return None
    return described.stdout.strip() or None
