"""The teacher's predictions for every token of the text, stored on disk."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from hybridize.checkpoints.checksums import load_checked, save_checked
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.modeling.model import HybridForCausalLM

_SEQUENCES_PER_FILE = 64
_TOKENS_PER_PASS = 4096
_MAX_LOGITS = 1 << 24  # elements, 64 MiB in float32


class TeacherCache:
    """The most likely next tokens at every position, in files of a few sequences each.

    Each stored prediction takes six bytes: an int32 token and a float16 log-probability.

    Args:
        directory: the directory of the files.
        top: the number of most likely tokens to store per position.
    """

    def __init__(self, directory: Path, top: int) -> None:
        self._directory, self._top = directory, top

    @torch.no_grad()
    def fill(self, teacher: HybridForCausalLM, dataset: PackedDataset) -> None:
        """Write the files that are missing or damaged."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with console.progress("running the teacher", dataset.tokens, "tokens") as progress:
            groups = torch.arange(len(dataset)).split(_SEQUENCES_PER_FILE)
            for number, indices in enumerate(groups):
                path = self._path(number)
                if not _is_intact(path):
                    parts = zip(*self._predictions(teacher, dataset, indices), strict=True)
                    tokens, log_probs = (torch.cat(part) for part in parts)
                    save_checked(path, {"indices": tokens, "log_probs": log_probs}, {})
                progress.advance(len(indices) * dataset.length)

    def read(
        self, indices: torch.Tensor, positions: slice, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return stored tokens and log-probabilities, ``(sequences, positions, top)`` each.

        Tokens are int32, log-probabilities float16.

        Args:
            indices: the indices of the sequences.
            positions: the token positions within the sequences.
            device: the device of the returned tensors.
        """
        tokens, log_probs = [], []
        for index in indices.tolist():
            number, offset = divmod(index, _SEQUENCES_PER_FILE)
            with safe_open(self._path(number), "pt") as file:
                tokens.append(file.get_slice("indices")[offset, positions])
                log_probs.append(file.get_slice("log_probs")[offset, positions])
        return torch.stack(tokens).to(device), torch.stack(log_probs).to(device)

    def _predictions(
        self, teacher: HybridForCausalLM, dataset: PackedDataset, indices: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield tokens and log-probabilities, for a few sequences at a time."""
        for part in indices.split(max(1, _TOKENS_PER_PASS // dataset.length)):
            ids, seq_idx = (tensor.to(teacher.device) for tensor in dataset.sequences(part))
            hidden = teacher.model(ids, seq_idx=seq_idx, use_cache=False).last_hidden_state
            head, scaling = teacher.lm_head.weight, teacher.config.logits_scaling
            top, tokens, log_probs = min(self._top, len(head)), [], []
            for chunk in hidden.flatten(0, 1).split(max(1, _MAX_LOGITS // len(head))):
                logits = (chunk.to(head.dtype) @ head.T).float() / scaling
                largest = logits.log_softmax(-1).topk(top)
                tokens.append(largest.indices.to("cpu", torch.int32))
                log_probs.append(largest.values.to("cpu", torch.float16))
            shape = (*ids.shape, top)
            yield torch.cat(tokens).view(shape), torch.cat(log_probs).view(shape)

    def _path(self, number: int) -> Path:
        return self._directory / f"teacher-{self._top}-{number:06d}.safetensors"


def _is_intact(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        load_checked(path)
    except (OSError, ValueError) as error:
        console.message(f"{path}: is damaged and will be written again: {error}")
        return False
    return True
