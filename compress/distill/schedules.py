"""Learning rate schedules, as functions of the step.

Names are those of transformers' `SchedulerType`. A schedule has no state, so a resumed run needs
none. The first step of a warmup is not 0, as it is in transformers, but one step further.
"""

import math
from collections.abc import Callable

_Decay = Callable[[float], float]


def _linear(done: float) -> float:
    return 1 - done


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


_DECAYS: dict[str, _Decay | None] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": None,
    "constant_with_warmup": None,
    "warmup_stable_decay": _cosine,  # transformers' default
}
SCHEDULES = tuple(_DECAYS)
"""The names of all schedules."""

DECAYING = tuple(name for name, decay in _DECAYS.items() if decay is not None)
"""The schedules whose rate falls at the end."""

STABLE = "warmup_stable_decay"
"""The schedule that stays at its peak until the last part of the steps."""


def lr_factor(
    name: str,
    step: int,
    steps: int,
    *,
    warmup_ratio: float,
    decay_ratio: float,
    min_lr_ratio: float,
) -> float:
    """Return the learning rate of a step as a fraction of its peak.

    Args:
        name: one of `SCHEDULES`.
        step: steps done before this one.
        steps: steps of the stage.
        warmup_ratio: fraction of the steps with a rising rate; ``constant`` has no warmup.
        decay_ratio: fraction of the steps with a falling rate, for ``warmup_stable_decay``.
        min_lr_ratio: the rate at the end, as a fraction of the peak, for `DECAYING`.
    """
    warmup_steps = max(1, round(steps * warmup_ratio))
    if step < warmup_steps and name != "constant":
        return (step + 1) / warmup_steps
    decay = _DECAYS[name]
    if decay is None:
        return 1.0
    first = steps - max(1, round(steps * decay_ratio)) if name == STABLE else warmup_steps
    done = max(0, step - first) / max(1, steps - first)
    return min_lr_ratio + (1 - min_lr_ratio) * decay(done)
