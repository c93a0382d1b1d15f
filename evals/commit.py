"""The commit that a result comes from."""

import subprocess


def current_commit() -> str | None:
    """Return the commit of the repository in the working directory, as lm-eval records it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always"], capture_output=True, text=True, check=False
        )
    except OSError:  # git is not installed
        return None
    return described.stdout.strip() or None
