"""What the teacher has computed before the training starts."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hybridize.compress.distill.batches import batch_indices
from hybridize.compress.distill.block_cache import BlockCache
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.distributed import ALONE, Ranks
from hybridize.compress.distill.pair import Pair
from hybridize.compress.distill.stages import STAGES
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.data.packing import PackedDataset
from hybridize.errors import InputError
from hybridize.units import size_in_words


@dataclass(frozen=True)
class TeacherCaches:
    """The stored results of the teacher; each is None if the options do not ask for it.

    Attributes:
        predictions: the most likely tokens, for the kl stage.
        blocks: the inputs and outputs of attention blocks, for the align stage.
    """

    predictions: TeacherCache | None = None
    blocks: BlockCache | None = None

    def fill(self, pair: Pair, ranks: Ranks = ALONE) -> None:
        """Run the teacher where results are missing. All processes must call this."""
        assert pair.teacher is not None
        if self.predictions is not None:
            self.predictions.fill(pair.teacher, ranks)
        if self.blocks is not None:  # for a single process only
            self.blocks.fill(pair.teacher)


def plan_caches(
    config: DistillConfig,
    pair: Pair,
    datasets: tuple[PackedDataset, PackedDataset],
    directory: Path,
    fingerprint: str,
) -> TeacherCaches:
    """Return the caches that the options ask for. They are not filled yet.

    Args:
        config: the options.
        pair: the student and its teacher.
        datasets: the training sequences and the validation sequences.
        directory: the directory of the files.
        fingerprint: the teacher's, see `cache_files.fingerprint`.

    Raises:
        InputError: ``cache_blocks`` has no room for one sequence.
    """
    dataset = PackedDataset.joined(datasets)
    predictions = blocks = None
    if config.cache_teacher:
        predictions = TeacherCache(directory, dataset, config.cache_teacher, fingerprint)
    if config.cache_blocks:
        blocks = BlockCache(
            directory,
            dataset,
            _by_use(config, datasets),
            pair.swapped,
            pair.student.config.hidden_size,
            config.cache_blocks,
            fingerprint,
        )
        if not len(blocks):
            raise InputError(
                f"`cache_blocks={size_in_words(config.cache_blocks)}`: one sequence of "
                f"{dataset.length} tokens takes {size_in_words(blocks.bytes_per_sequence)}; give "
                "more, or leave the option out"
            )
    return TeacherCaches(predictions, blocks)


def _by_use(config: DistillConfig, datasets: tuple[PackedDataset, PackedDataset]) -> torch.Tensor:
    """Return the indices of the sequences that the stages with stored blocks use.

    Validation sequences come first, because every validation uses them. Training sequences follow
    in the order of their first use.
    """
    training, validation = map(len, datasets)
    steps = max(config.steps_of(n) for n in config.stages if STAGES[n].reads_block_cache)
    used = min(steps * config.sequences_per_step, training)
    held_out = torch.arange(training, training + validation)
    return torch.cat([held_out, batch_indices(0, used, training, config.seed)])
