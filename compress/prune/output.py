"""Writes the pruned checkpoint of a candidate."""

from pathlib import Path

from hybridize.checkpoints.provenance import describe_source
from hybridize.checkpoints.streaming_writer import (
    PlannedCheckpoint,
    plan_checkpoint,
    write_checkpoint,
)
from hybridize.compress.prune.budget import Parameters
from hybridize.compress.prune.config import PruneConfig
from hybridize.compress.prune.pruned_tensors import PrunedTensors
from hybridize.compress.prune.ranking import Candidate
from hybridize.compress.prune.scores import Scores
from hybridize.compress.prune.source import Source


def pruned_checkpoint(
    source: Source, candidate: Candidate, scores: Scores, dtype: str
) -> PlannedCheckpoint:
    """Return the tensors of a candidate as they will be stored. They are read when written.

    Args:
        source: the checkpoint that is pruned.
        candidate: the architecture and its on-disk format.
        scores: the importance of the model's parts.
        dtype: the dtype of the stored weights; ``auto`` keeps the source's.
    """
    tensors = PrunedTensors(source.tensors, source.config, candidate.architecture, scores)
    stored = None if dtype == "auto" else dtype
    return plan_checkpoint(tensors, tensors.config, candidate.format, candidate.fit, stored)


def write_candidate(
    source: Source,
    candidate: Candidate,
    scores: Scores,
    output: Path,
    options: PruneConfig,
    *,
    plot: bytes,
    force: bool,
) -> None:
    """Write the pruned checkpoint, tensor by tensor, with its provenance and a plot.

    Args:
        source: the checkpoint that is pruned.
        candidate: the architecture and its on-disk format.
        scores: the importance of the model's parts.
        output: the directory.
        options: the options of `prune`.
        plot: importance.png.
        force: replace an existing output.
    """
    pruned = pruned_checkpoint(source, candidate, scores, options.dtype)
    record = {
        "command": "prune",
        "options": options.record() | {"format": candidate.format.name},
        "seed": options.seed,
        "source": describe_source(source.directory, source.reader.sha256()),
        "metrics": {
            "changes": candidate.changes,
            "kl": candidate.kl,
            "costs": list(candidate.costs),
            "layout_before": source.config.layout,
            "layout_after": candidate.config.layout,
            "parameters_before": int(Parameters(0).cost(source.config)),
            "parameters_after": candidate.parameters,
        },
    }
    write_checkpoint(
        pruned,
        output,
        reader=source.reader,
        source_format=source.format,
        record=lambda files: record,
        label="cutting",
        force=force,
        max_shard_size=options.max_shard_size,
        extra_files={"importance.png": plot},
    )
