"""Distills the best candidates on a few tokens, before one of them is chosen.

As in MiniPuzzle (Nemotron-H, arXiv 2504.03624, section 4.3): the quality after some training
matters more than the quality right after the cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hybridize.checkpoints import read_provenance
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.pipeline import DistillPipeline
from hybridize.compress.prune.ranking import Candidate
from hybridize.console import console
from hybridize.errors import InputError

_SAVE_EVERY = 50
_MIN_STEPS = 30  # with few tokens, the batch size is reduced to reach this number
_MAX_BATCH_SIZE = 16


def distill_finalists(
    candidates: Sequence[Candidate],
    write: Callable[[Candidate, Path], None],
    *,
    teacher: Path,
    work: Path,
    calibration: str,
    tokens: int,
    seq_len: int,
    seed: int,
    device: torch.device,
) -> list[tuple[Candidate, Path]]:
    """Distill candidates, and return them with their directories, the smallest KL first.

    Args:
        candidates: the finalists.
        write: writes the pruned checkpoint of a candidate to a directory.
        teacher: the model.
        work: the working directory. An interrupted run is resumed from its files.
        calibration: the text, see `load_packed_dataset`.
        tokens: training tokens of each candidate.
        seq_len: tokens per sequence.
        seed: random seed of the distillation.
        device: the device to train on.

    Raises:
        InputError: there are fewer tokens than one sequence has.
    """
    if tokens < seq_len:
        raise InputError(f"`tokens={tokens}`: give at least the {seq_len} tokens of a sequence")
    distilled = []
    for number, candidate in enumerate(candidates, start=1):
        console.message(f"distilling candidate {number} of {len(candidates)}: {candidate.changes}")
        start, output = work / f"candidate-{number}", work / f"distilled-{number}"
        if not output.exists():
            if not start.exists():
                write(candidate, start)
            config = DistillConfig(
                teacher=str(teacher),
                data=(calibration,),
                stages=("kl",),
                stage_tokens={"kl": tokens},
                seq_len=seq_len,
                batch_size=max(1, min(_MAX_BATCH_SIZE, tokens // seq_len // _MIN_STEPS)),
                train="all",
                seed=seed,
                dtype="bfloat16" if device.type == "cuda" else "float32",
                save_every=_SAVE_EVERY,
                resume=(work / f"{output.name}.distill" / "run.json").exists(),
                force=True,
            )
            pipeline = DistillPipeline(start, teacher, output, (), config, device, work / "data")
            pipeline.claim()
            pipeline.run()
        distilled.append((replace(candidate, kl_distilled=_final_kl(output)), output))
    return sorted(distilled, key=lambda pair: pair[0].kl_distilled or 0.0)


def _final_kl(directory: Path) -> float:
    """Return the last validation loss of a distillation from its provenance."""
    return float(read_provenance(directory)[-1]["metrics"]["stages"][-1]["validation_after"])
