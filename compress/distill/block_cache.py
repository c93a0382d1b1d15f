"""Inputs and outputs of the teacher's attention blocks, stored on disk for the align stage."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from hybridize.compress.distill.block_run import run_mixers
from hybridize.compress.distill.cache_files import content_key, is_intact, write
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.file_names import utf8_path
from hybridize.modeling.model import HybridForCausalLM

_DTYPE = torch.bfloat16
"""It rounds by at most 2⁻⁸, which adds less than 10⁻⁵ to a relative squared error."""

_BYTES_PER_PASS = 1 << 28


class BlockCache:
    """The inputs and outputs of some of the teacher's mixers, in one file per sequence.

    Args:
        directory: the directory of the files. Runs may share it.
        dataset: all sequences.
        order: indices of the sequences to store, the most useful first.
        blocks: the indices of the mixers' blocks.
        hidden_size: the model's.
        max_bytes: the sequences that do not fit are not stored.
        teacher: the teacher's fingerprint, see `cache_files.fingerprint`.
    """

    def __init__(
        self,
        directory: Path,
        dataset: PackedDataset,
        order: torch.Tensor,
        blocks: tuple[int, ...],
        hidden_size: int,
        max_bytes: int,
        teacher: str,
    ) -> None:
        self._directory, self._dataset, self._blocks = directory, dataset, blocks
        self.bytes_per_sequence = (
            2 * len(blocks) * dataset.length * hidden_size * torch.finfo(_DTYPE).bits // 8
        )
        self._order = order[: max_bytes // self.bytes_per_sequence]
        settings = {"blocks": list(blocks)}
        self._keys = {
            int(index): content_key(teacher, dataset, index[None], settings)
            for index in self._order
        }

    def __len__(self) -> int:
        """Return the number of stored sequences."""
        return len(self._keys)

    def __contains__(self, index: int) -> bool:
        """Return whether a sequence is stored."""
        return index in self._keys

    def fill(self, teacher: HybridForCausalLM) -> None:
        """Write the files that are missing or damaged.

        The sequences of a pass are always the same, so that a resumed run stores the same bits.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        sequences = max(1, _BYTES_PER_PASS // self.bytes_per_sequence)
        total = len(self) * self._dataset.length
        with console.progress("storing block inputs", total, "tokens") as progress:
            for indices in self._order.split(sequences):
                missing = [
                    i for i in indices.tolist() if not is_intact(self._path(i), self._keys[i])
                ]
                if missing:
                    self._store(teacher, indices, missing)
                progress.advance(len(indices) * self._dataset.length)

    def read(
        self, indices: torch.Tensor, device: torch.device
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield each block's index and its stored input and output.

        Args:
            indices: the indices of stored sequences.
            device: the device of the returned tensors.

        Yields:
            The index of the block, and ``(sequences, length, hidden)`` twice, in bfloat16.
        """
        paths = [self._path(index) for index in indices.tolist()]
        for block in self._blocks:
            tensors: dict[str, list[torch.Tensor]] = {"input": [], "output": []}
            for path in paths:
                # safe_open maps the file; only these tensors are read.
                with utf8_path(path) as opened, safe_open(opened, "pt") as file:
                    for name, parts in tensors.items():
                        parts.append(file.get_tensor(f"{name}.{block}"))
            x, y = (torch.stack(parts).to(device) for parts in tensors.values())
            yield block, x, y

    def _store(self, teacher: HybridForCausalLM, indices: torch.Tensor, missing: list[int]) -> None:
        """Run the teacher on some sequences, and write the files of those that are missing."""
        ids, seq_idx = (part.to(teacher.device) for part in self._dataset.sequences(indices))
        stored = {
            f"{name}.{block}": value.to("cpu", _DTYPE)
            for block, x, y, _ in run_mixers(teacher, self._blocks, ids, seq_idx)
            for name, value in (("input", x), ("output", y))
        }
        for offset, index in enumerate(indices.tolist()):
            if index in missing:
                tensors = {name: value[offset].clone() for name, value in stored.items()}
                write(self._path(index), self._keys[index], tensors)

    def _path(self, index: int) -> Path:
        return self._directory / f"blocks-{self._keys[index]}.safetensors"
