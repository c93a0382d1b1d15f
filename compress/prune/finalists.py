"""The last round: the best candidates learn for a while before one is chosen.

As MiniPuzzle does (Nemotron-H, arXiv 2504.03624, section 4.3): what a cut costs at first says less
than what is left of it after some training.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hybridize.checkpoints import read_provenance
from hybridize.compress.distill.run import Run
from hybridize.compress.distill.settings import DistillSettings
from hybridize.compress.distill.stages import default_rates
from hybridize.compress.prune.ranking import Entrant
from hybridize.console import console
from hybridize.errors import InputError

_SAVE_EVERY = 50
_LEAST_STEPS = 30  # rather than large batches, where tokens are few


def tournament(
    entrants: Sequence[Entrant],
    write: Callable[[Entrant, Path], None],
    *,
    teacher: Path,
    work: Path,
    calibration: str,
    tokens: int,
    length: int,
    seed: int,
    device: torch.device,
) -> list[tuple[Entrant, Path]]:
    """Distill candidates, and return them, the closest to the model first, with their directories.

    Args:
        entrants: who takes part.
        write: cuts one to a directory.
        teacher: the model.
        work: a directory for all of it; what a killed run left there is gone on with.
        calibration: the text, see `load_packed_dataset`.
        tokens: what each trains on.
        length: tokens per row.
        seed: of the rows' order.
        device: where to train.

    Raises:
        InputError: there is less text than that.
    """
    batch = max(1, min(16, tokens // length // _LEAST_STEPS))
    if tokens < length:
        raise InputError(f"--tokens {tokens}: less than a row of {length}")
    settings = DistillSettings(
        stages=("kl",),
        tokens={"kl": tokens},
        learning_rates=default_rates("all"),
        seq_len=length,
        batch_size=batch,
        train="all",
        seed=seed,
        dtype="bfloat16" if device.type == "cuda" else "float32",
    )
    done = []
    for number, entrant in enumerate(entrants, start=1):
        console.message(f"distilling candidate {number} of {len(entrants)}: {entrant.what}")
        start, output = work / f"candidate-{number}", work / f"distilled-{number}"
        if not output.exists():
            if not start.exists():
                write(entrant, start)
            run = Run(
                start, teacher, output, (), settings, device, (calibration,), None, work / "data"
            )
            run.claim(resume=(work / f"{output.name}.distill" / "run.json").exists(), force=True)
            run.train(_SAVE_EVERY, force=True)
        done.append((replace(entrant, kl_distilled=_validation(output)), output))
    return sorted(done, key=lambda pair: pair[0].kl_distilled or 0.0)


def _validation(directory: Path) -> float:
    """Return where a distillation ended, from its own record."""
    return float(read_provenance(directory)[-1]["metrics"]["stages"][-1]["validation_after"])
