"""The teacher's predictions for every token of the text, stored on disk."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from hybridize.compress.distill.cache_files import content_key, is_intact, write
from hybridize.compress.distill.distributed import ALONE, Ranks
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.file_names import utf8_path
from hybridize.modeling.model import HybridForCausalLM
from hybridize.modeling.sharded_weight import whole_weight

_SEQUENCES_PER_FILE = 64
_TOKENS_PER_PASS = 4096
_MAX_LOGITS = 1 << 24  # elements, 64 MiB in float32
_MAX_UINT16 = 1 << 16


class TeacherCache:
    """The most likely next tokens at every position, in files of a few sequences each.

    A stored prediction takes four bytes, a uint16 token and a float16 log-probability, or six with
    int32 tokens if the vocabulary has more than 65,536. A float16 has 11 significant bits, so the
    log-probabilities of likely tokens, which dominate the divergence, are the most accurate.

    Args:
        directory: the directory of the files. Runs may share it.
        dataset: the sequences.
        top: the number of most likely tokens to store per position.
        teacher: the teacher's fingerprint, see `cache_files.fingerprint`.
    """

    def __init__(self, directory: Path, dataset: PackedDataset, top: int, teacher: str) -> None:
        self._directory, self._dataset, self._top = directory, dataset, top
        self._groups = torch.arange(len(dataset)).split(_SEQUENCES_PER_FILE)
        settings = {"predictions": top}
        self._keys = [content_key(teacher, dataset, group, settings) for group in self._groups]

    @torch.no_grad()
    def fill(self, teacher: HybridForCausalLM, ranks: Ranks = ALONE) -> None:
        """Write the files that are missing or damaged. The processes share the work.

        A sharded teacher runs in all processes or in none. So a process that has no file left
        computes one that another process writes.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        missing = [n for n, key in enumerate(self._keys) if not is_intact(self._path(key), key)]
        missing = ranks.same(missing)
        done = len(self._dataset) - sum(len(self._groups[number]) for number in missing)
        with console.progress(
            "running the teacher",
            self._dataset.tokens,
            "tokens",
            completed=done * self._dataset.length,
        ) as progress:
            for first in range(0, len(missing), ranks.size):
                group = missing[first : first + ranks.size]
                number = group[min(ranks.rank, len(group) - 1)]
                parts = zip(*self._predictions(teacher, self._groups[number]), strict=True)
                tokens, log_probs = (torch.cat(part) for part in parts)
                if ranks.rank < len(group):
                    key, count = self._keys[number], len(self._groups[number])
                    predictions = {"indices": tokens[:count], "log_probs": log_probs[:count]}
                    write(self._path(key), key, predictions)
                progress.advance(sum(len(self._groups[n]) for n in group) * self._dataset.length)
        ranks.wait()

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
            path = self._path(self._keys[number])
            with utf8_path(path) as name, safe_open(name, "pt") as file:
                tokens.append(file.get_slice("indices")[offset, positions].to(torch.int32))
                log_probs.append(file.get_slice("log_probs")[offset, positions])
        return torch.stack(tokens).to(device), torch.stack(log_probs).to(device)

    def _predictions(
        self, teacher: HybridForCausalLM, indices: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield tokens and log-probabilities, for a few sequences at a time.

        The last, smaller group is repeated, so that all groups take the same number of passes.
        """
        longest = len(self._groups[0])
        indices = indices.repeat(-(-longest // len(indices)))[:longest]
        head, scaling = whole_weight(teacher.lm_head.weight), teacher.config.logits_scaling
        token_dtype = torch.uint16 if len(head) <= _MAX_UINT16 else torch.int32
        for part in indices.split(max(1, _TOKENS_PER_PASS // self._dataset.length)):
            ids, seq_idx = (tensor.to(teacher.device) for tensor in self._dataset.sequences(part))
            hidden = teacher.model(ids, seq_idx=seq_idx, use_cache=False).last_hidden_state
            top, tokens, log_probs = min(self._top, len(head)), [], []
            for chunk in hidden.flatten(0, 1).split(max(1, _MAX_LOGITS // len(head))):
                logits = (chunk.to(head.dtype) @ head.T).float() / scaling
                largest = logits.topk(top)
                log_prob = largest.values - logits.logsumexp(-1, keepdim=True)
                tokens.append(largest.indices.to("cpu", token_dtype))
                log_probs.append(log_prob.to("cpu", torch.float16))
            shape = (*ids.shape, top)
            yield torch.cat(tokens).view(shape), torch.cat(log_probs).view(shape)

    def _path(self, key: str) -> Path:
        return self._directory / f"predictions-{self._top}-{key}.safetensors"
