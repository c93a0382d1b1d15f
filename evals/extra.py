"""The libraries that evaluation needs beyond those of a plain install."""

from hybridize.extras import require_extra

_NEEDED = ("datasets", "lm_eval.models.huggingface", "scipy.stats")


def require_eval_extra() -> None:
    """Import what ``pip install "hybridize[eval]"`` installs; see `require_extra`."""
    require_extra("eval", _NEEDED, "evaluation")
