"""What the teacher says about every token of the data, written down once."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from hybridize.checkpoints.checksums import load_checked, save_checked
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.modeling.model import HybridForCausalLM

_ROWS_PER_FILE = 64
_TOKENS_AT_ONCE = 4096
_LOGITS_AT_ONCE = 1 << 24  # elements, 64 MiB in float32


class TeacherCache:
    """The likeliest next tokens of every row, in files of a few rows each.

    A token takes six bytes for each of them: an int32 and a float16.

    Args:
        directory: of the files.
        top: likeliest tokens that are kept.
    """

    def __init__(self, directory: Path, top: int) -> None:
        self._directory, self._top = directory, top

    @torch.no_grad()
    def fill(self, teacher: HybridForCausalLM, dataset: PackedDataset) -> None:
        """Write what is missing, or is not any more what was written."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with console.progress("asking the teacher", dataset.tokens, "tokens") as progress:
            for number, rows in enumerate(torch.arange(len(dataset)).split(_ROWS_PER_FILE)):
                path = self._path(number)
                if not _is_sound(path):
                    parts = zip(*self._answers(teacher, dataset, rows), strict=True)
                    indices, log_probs = (torch.cat(part) for part in parts)
                    save_checked(path, {"indices": indices, "log_probs": log_probs}, {})
                progress.advance(len(rows) * dataset.length)

    def rows(
        self, rows: torch.Tensor, piece: slice, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and log-probabilities, ``(rows, tokens, top)`` each, of some places."""
        indices, log_probs = [], []
        for row in rows.tolist():
            number, place = divmod(row, _ROWS_PER_FILE)
            with safe_open(self._path(number), "pt") as file:
                indices.append(file.get_slice("indices")[place, piece])
                log_probs.append(file.get_slice("log_probs")[place, piece])
        return torch.stack(indices).to(device), torch.stack(log_probs).to(device)

    def _answers(
        self, teacher: HybridForCausalLM, dataset: PackedDataset, rows: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for part in rows.split(max(1, _TOKENS_AT_ONCE // dataset.length)):
            ids, seq_idx = (tensor.to(teacher.device) for tensor in dataset.sequences(part))
            hidden = teacher.model(ids, seq_idx=seq_idx, use_cache=False).last_hidden_state
            head, scaling = teacher.lm_head.weight, teacher.config.logits_scaling
            top, indices, values = min(self._top, len(head)), [], []
            for chunk in hidden.flatten(0, 1).split(max(1, _LOGITS_AT_ONCE // len(head))):
                logits = (chunk.to(head.dtype) @ head.T).float() / scaling
                chosen = logits.log_softmax(-1).topk(top)
                indices.append(chosen.indices.to("cpu", torch.int32))
                values.append(chosen.values.to("cpu", torch.float16))
            shape = (*ids.shape, top)
            yield torch.cat(indices).view(shape), torch.cat(values).view(shape)

    def _path(self, number: int) -> Path:
        return self._directory / f"teacher-{self._top}-{number:06d}.safetensors"


def _is_sound(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        load_checked(path)
    except (OSError, ValueError) as error:
        console.message(f"{path}: written anew: {error}")
        return False
    return True
