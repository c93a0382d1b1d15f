"""The training loop: one stage, from where it stands to its end."""

import json
import math
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from hybridize.compress.distill.batches import rows_of_step
from hybridize.compress.distill.distributed import Ranks, average, clip, gather, like
from hybridize.compress.distill.settings import DistillSettings
from hybridize.compress.distill.stages import Stage
from hybridize.compress.distill.state import Progress
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.errors import HybridizeError

_LOWEST = 0.02
"""Learning rate at a stage's end, as a share of its peak."""

_BETAS = (0.9, 0.95)
_MOST_SKIPPED = 20


class Loop:
    """Trains one stage.

    Args:
        name: of the stage.
        stage: what to train.
        settings: how.
        dataset: rows to train on, and rows to validate on, whose numbers follow the former's.
        progress: where the stage stands; moved on.
        metrics: a file that gets one JSON object a step.
        device: where the batches go.
        ranks: the processes that train together.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        settings: DistillSettings,
        dataset: tuple[PackedDataset, PackedDataset],
        progress: Progress,
        metrics: Path,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        assert settings.learning_rates is not None
        self._name, self._stage, self._settings = name, stage, settings
        self._training, self._validation = dataset
        self._progress, self._metrics, self._device = progress, metrics, device
        self._ranks = ranks
        self._steps, self._peak = settings.steps(name), settings.learning_rates[name]
        groups = []
        for decayed, sharded in product((True, False), (True, False)):
            mine = [
                p
                for p in stage.parameters.values()
                if (p.ndim > 1) == decayed and isinstance(p, DTensor) == sharded
            ]
            if mine:
                decay = settings.weight_decay if decayed else 0.0
                groups.append({"params": mine, "weight_decay": decay})
        self._optimizer = torch.optim.AdamW(groups, lr=self._peak, betas=_BETAS)
        self._best: dict[str, torch.Tensor] = {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all that a resumed run needs, beside `Progress`."""
        result: dict[str, torch.Tensor] = {}
        for name, parameter in self._stage.parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                result[f"optimizer.{key}.{name}"] = gather(value)
        return result | {f"best.{name}": gather(value) for name, value in self._best.items()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up what `tensors` gave."""
        for name, parameter in self._stage.parameters.items():
            state = {
                key: tensors[full] if key == "step" else like(tensors[full], parameter)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if (full := f"optimizer.{key}.{name}") in tensors
            }
            if state:
                self._optimizer.state[parameter] = state
        self._best = {
            name: like(tensors[f"best.{name}"], parameter)
            for name, parameter in self._stage.parameters.items()
            if f"best.{name}" in tensors
        }

    def run(self, save: Callable[[], None], save_every: int) -> None:
        """Train to the end.

        Args:
            save: writes the run down.
            save_every: steps between saves.

        Raises:
            HybridizeError: gradients or the validation loss are not finite any more.
        """
        settings, progress = self._settings, self._progress
        batch_tokens = settings.batch_size * settings.seq_len
        if not progress.validation:
            self._validate()
        with console.progress(
            self._name,
            self._steps * batch_tokens,
            "tokens",
            completed=progress.step * batch_tokens,
        ) as bar:
            while progress.step < self._steps and not self._is_stuck():
                started = time.perf_counter()
                self._step()
                bar.advance(batch_tokens)
                if progress.step % settings.validate_every == 0 or progress.step == self._steps:
                    self._validate()
                progress.seconds += time.perf_counter() - started
                if progress.step % save_every == 0:
                    save()
        if self._best:
            with torch.no_grad():
                for name, value in self._best.items():
                    self._stage.parameters[name].copy_(value)

    def _step(self) -> None:
        progress, settings = self._progress, self._settings
        rate = self._peak * _schedule(progress.step, self._steps, settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        rows = rows_of_step(progress.step, settings.batch_size, len(self._training), settings.seed)
        rows = self._ranks.mine(rows)
        with self._autocast():
            loss = self._stage.learn(*self._batch(self._training, rows), rows)
        loss = self._ranks.mean(loss)
        average(self._stage.parameters.values(), self._ranks)
        norm = clip(self._stage.parameters.values(), settings.clip, self._ranks)
        finite = math.isfinite(loss) and bool(norm.isfinite())
        if finite:
            self._optimizer.step()
            progress.losses = [*progress.losses[:1], loss]
        else:
            progress.skipped += 1
            if progress.skipped > _MOST_SKIPPED:
                raise HybridizeError(
                    f"{self._name}: the loss or its gradient was not finite in "
                    f"{progress.skipped} steps; try a lower learning rate"
                )
        self._optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        tokens = progress.step * settings.batch_size * settings.seq_len
        self._log(
            {"step": progress.step, "tokens": tokens, "learning_rate": rate}
            | ({"loss": loss, "gradient_norm": float(norm)} if finite else {"skipped": True})
        )

    @torch.no_grad()
    def _validate(self) -> None:
        progress, count = self._progress, len(self._training)
        total = 0.0
        for batch in torch.arange(len(self._validation)).split(self._settings.batch_size):
            rows = self._ranks.mine(batch)
            with self._autocast():
                loss = self._stage.measure(*self._batch(self._validation, rows), rows + count)
            total += self._ranks.mean(loss) * len(batch)
        loss = total / len(self._validation)
        if not math.isfinite(loss):
            raise HybridizeError(
                f"{self._name}: the validation loss is {loss} at step {progress.step}; check both "
                "models with hybridize verify, or try a lower learning rate"
            )
        if self._settings.patience and loss < min(
            (value for _, value in progress.validation), default=math.inf
        ):
            self._best = {n: p.detach().clone() for n, p in self._stage.parameters.items()}
        progress.validation.append((progress.step, loss))
        self._log({"step": progress.step, "validation": loss})
        self._say(
            f"{self._name}: step {progress.step} of {self._steps}, validation loss {loss:.4f}"
        )

    def _is_stuck(self) -> bool:
        """Say whether validation has not improved for as long as patience lasts."""
        losses = [loss for _, loss in self._progress.validation]
        since = len(losses) - 1 - min(range(len(losses)), key=losses.__getitem__)
        return bool(self._settings.patience) and since >= self._settings.patience

    def _batch(
        self, dataset: PackedDataset, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids, seq_idx = dataset.sequences(rows)
        return ids.to(self._device), seq_idx.to(self._device)

    def _autocast(self) -> Any:
        dtype = getattr(torch, self._settings.dtype)
        enabled = dtype != torch.float32
        return torch.autocast(self._device.type, dtype if enabled else None, enabled=enabled)

    def _say(self, text: str) -> None:
        if self._ranks.first:
            console.message(text)

    def _log(self, values: dict[str, Any]) -> None:
        self._progress.lines += 1
        if not self._ranks.first:
            return
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self._name, **values}) + "\n")


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate's share of its peak: a linear rise, then half a cosine."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    through = (step - rise) / max(1, steps - rise)
    return _LOWEST + (1 - _LOWEST) * (1 + math.cos(math.pi * through)) / 2
