"""The training loop of one stage."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hybridize.compress.distill.batches import Part, batch_indices, split_batch
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.distributed import (
    Ranks,
    average_gradients,
    clip_grad_norm,
    reduce_gradients,
)
from hybridize.compress.distill.loss_mask import counted_predictions
from hybridize.compress.distill.optimizers import StageOptimizer
from hybridize.compress.distill.perplexity import text_loss
from hybridize.compress.distill.saved_states import SavedStates
from hybridize.compress.distill.stages import STAGES
from hybridize.compress.distill.stages.base import Stage
from hybridize.compress.distill.trainer_state import TrainerState
from hybridize.console import console
from hybridize.data.packing import PackedDataset
from hybridize.errors import HybridizeError
from hybridize.interrupts import INTERRUPTIONS, delayed_signal, stop, uninterrupted

_MAX_NATS = 700.0  # of a perplexity that is a float
_MAX_SKIPPED = 20  # steps of a stage; more of them mean that the training has diverged


class Trainer:
    """Trains one stage.

    Args:
        name: the stage's name.
        stage: computes losses and gradients.
        config: the options.
        datasets: the training sequences and the validation sequences.
        state: the progress of the stage; updated while training.
        metrics: a file to which one JSON object per step is appended.
        device: the device of the batches.
        ranks: the processes that train together.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        config: DistillConfig,
        datasets: tuple[PackedDataset, PackedDataset],
        state: TrainerState,
        metrics: Path,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self._name, self._stage, self._config = name, stage, config
        self._training, self._validation = datasets
        self._state, self._metrics, self._device = state, metrics, device
        self._ranks = ranks
        self._masks_loss = STAGES[name].masks_loss
        self._steps = config.steps_of(name)
        self._optimizer = StageOptimizer(name, stage, config)
        self._best: dict[str, torch.Tensor] = {}
        self._inconsistent = False

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the optimizer's state and the best parameters, for a resumed run."""
        best = {f"best.{name}": value for name, value in self._best.items()}
        return self._optimizer.tensors() | best

    def restore(self, states: SavedStates) -> None:
        """Load what `tensors` returned when the newest state was saved."""
        self._optimizer.prepare(states)
        saved = states.layout()
        for name, parameter in self._stage.parameters.items():
            if f"best.{name}" in saved:
                self._best[name] = torch.zeros_like(parameter)
        states.load(self.tensors())

    def train(self, save: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Train the stage to its end, and save the state regularly.

        Args:
            save: saves the state with the given tensors.

        Raises:
            HybridizeError: gradients or the validation loss are no longer finite.
        """
        config, state = self._config, self._state
        batch_tokens = config.sequences_per_step * config.seq_len
        total, done = self._steps * batch_tokens, state.step * batch_tokens
        with (
            console.progress(self._name, total, "tokens", completed=done) as progress,
            self._saved_if_interrupted(save),
        ):
            self._measure()
            while state.step < self._steps and not self._should_stop_early():
                with self._stopping_together(save):
                    started = time.perf_counter()
                    self._train_step()
                    progress.advance(batch_tokens)
                    self._measure()
                    state.seconds += time.perf_counter() - started
                    if state.step % config.save_every == 0:
                        save(self.tensors())
        if self._best:
            with torch.no_grad():
                for name, value in self._best.items():
                    self._stage.parameters[name].copy_(value)

    @contextmanager
    def _saved_if_interrupted(
        self, save: Callable[[dict[str, torch.Tensor]], None]
    ) -> Iterator[None]:
        """Save the state if a signal ends the block, unless it arrived during `_changing`.

        For a single process; see `_stopping_together` for several.
        """
        try:
            yield
        except INTERRUPTIONS:
            if not self._inconsistent and self._ranks.size == 1:
                save(self.tensors())
            raise

    @contextmanager
    def _stopping_together(self, save: Callable[[dict[str, torch.Tensor]], None]) -> Iterator[None]:
        """Run a step to its end. If a signal has arrived in any process, save, and stop in all."""
        if self._ranks.size == 1:
            yield
            return
        with uninterrupted():
            yield
            signum = self._ranks.largest(delayed_signal())
            if signum:
                save(self.tensors())
                stop(signum)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Delay signals while the parameters and the state that belongs to them are changed."""
        with uninterrupted():
            self._inconsistent = True
            yield
            self._inconsistent = False

    def _measure(self) -> None:
        """Validate, and measure the perplexity, if this step needs it and it was not done yet."""
        state, every = self._state, self._config.eval_every
        evaluate = self._is_due(every, state.perplexities)
        with_validation = bool(every) and self._is_due(every, state.validation)
        if with_validation or self._is_due(self._config.validate_every, state.validation):
            self._validate()
        if evaluate:
            self._evaluate()

    def _is_due(self, every: int, done: list[tuple[int, float]]) -> bool:
        step = self._state.step
        due = every > 0 and (step % every == 0 or step == self._steps)
        return due and (not done or done[-1][0] != step)

    def _train_step(self) -> None:
        """Train on the batch of a step. If its loss or gradients are not finite, it is skipped."""
        state, config = self._state, self._config
        rates = self._optimizer.set_learning_rates(config.lr_factor(state.step, self._steps))
        loss = self._ranks.mean(self._add_gradients())
        average_gradients(self._stage.parameters.values(), self._ranks)
        norm = clip_grad_norm(self._stage.parameters.values(), config.max_grad_norm, self._ranks)
        finite = math.isfinite(loss) and bool(norm.isfinite())
        with self._changing():
            if finite:
                self._optimizer.step()
                state.losses = [*state.losses[:1], loss]
            else:
                self._count_skipped()
            self._optimizer.zero_grad()
            state.step += 1
            tokens = state.step * config.sequences_per_step * config.seq_len
            self._log(
                {"step": state.step, "tokens": tokens}
                | rates
                | ({"loss": loss, "gradient_norm": float(norm)} if finite else {"skipped": True})
            )

    def _add_gradients(self) -> float:
        """Compute the gradients of the step's batch, part by part; return this process's loss.

        The mean of the losses of all processes is the mean loss of the batch.
        """
        config, stage = self._config, self._stage
        count = config.sequences_per_step
        batch = batch_indices(self._state.step, count, len(self._training), config.seed)
        parts, loss = self._split(self._training, batch, masked=self._masks_loss), 0.0
        for number, part in enumerate(parts, start=1):
            reduce_gradients(stage.pair.student, number == len(parts), self._ranks)
            stage.weight, stage.mask, calls = part.weight, part.counted, stage.backward_calls
            with self._autocast():
                ids, seq_idx = self._batch(self._training, part.indices)
                part_loss = stage.training_step(ids, seq_idx, part.indices)
            if part.weight != 1.0 and stage.backward_calls == calls:
                raise HybridizeError(
                    f"{self._name}: this stage cannot compute a step in parts, because it does "
                    "not call `Stage.backward`; leave `global_batch_size` out"
                )
            loss += part.weight * part_loss
        return loss

    def _split(self, dataset: PackedDataset, batch: torch.Tensor, *, masked: bool) -> list[Part]:
        """Return the parts of a batch that this process computes."""
        counted = counted_predictions(dataset, batch) if masked else None
        ranks = self._ranks
        return split_batch(batch, self._config.batch_size, ranks.rank, ranks.size, counted)

    def _count_skipped(self) -> None:
        self._state.skipped += 1
        if self._state.skipped > _MAX_SKIPPED:
            raise HybridizeError(
                f"{self._name}: the loss or its gradient was not finite in {self._state.skipped} "
                "steps; try a lower learning rate"
            )

    @torch.no_grad()
    def _validate(self) -> None:
        state, first_index = self._state, len(self._training)
        batch, loss = torch.arange(len(self._validation)), 0.0
        for part in self._split(self._validation, batch, masked=self._masks_loss):
            self._stage.mask = part.counted
            with self._autocast():
                ids, seq_idx = self._batch(self._validation, part.indices)
                part_loss = self._stage.validation_step(ids, seq_idx, part.indices + first_index)
            loss += part.weight * part_loss
        loss = self._ranks.mean(loss)
        if not math.isfinite(loss):
            raise HybridizeError(
                f"{self._name}: the validation loss is {loss} at step {state.step}; check both "
                "models with hybridize verify, or try a lower learning rate"
            )
        with self._changing():
            if not self._config.eval_every:
                self._keep_if_best(loss, state.validation)
            state.validation.append((state.step, loss))
            self._log({"step": state.step, "validation": loss})
        console.message(
            f"{self._name}: step {state.step} of {self._steps}, validation loss {loss:.4f}"
        )

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Measure the student's perplexity on the validation sequences."""
        state, total, tokens = self._state, 0.0, 0.0
        batch = torch.arange(len(self._validation))
        for part in self._split(self._validation, batch, masked=True):  # alike in all stages
            with self._autocast():
                ids, seq_idx = self._batch(self._validation, part.indices)
                loss, count = text_loss(self._stage.pair.student, ids, seq_idx, part.counted)
            if part.weight:  # otherwise nothing counts, or another process counts it
                total, tokens = total + loss, tokens + count
        total, tokens = self._ranks.mean(total), self._ranks.mean(tokens)
        nats = total / tokens if tokens else math.nan
        perplexity = math.exp(nats) if nats < _MAX_NATS else math.nan
        if not math.isfinite(perplexity):
            raise HybridizeError(
                f"{self._name}: the perplexity at step {state.step} is not finite; check both "
                "models with hybridize verify, or try a lower learning rate"
            )
        with self._changing():
            self._keep_if_best(perplexity, state.perplexities)
            state.perplexities.append((state.step, perplexity))
            self._log({"step": state.step, "perplexity": perplexity})
        console.message(f"{self._name}: step {state.step}, perplexity {perplexity:.4f}")

    def _keep_if_best(self, value: float, earlier: list[tuple[int, float]]) -> None:
        """Copy the parameters if patience needs the best ones and these are."""
        if self._config.patience and value < min((v for _, v in earlier), default=math.inf):
            self._best = {n: p.detach().clone() for n, p in self._stage.parameters.items()}

    def _should_stop_early(self) -> bool:
        """Return whether the last ``patience`` measurements brought no improvement."""
        state = self._state
        measured = state.perplexities if self._config.eval_every else state.validation
        losses = [value for _, value in measured]
        since_best = len(losses) - 1 - min(range(len(losses)), key=losses.__getitem__)
        return bool(self._config.patience) and since_best >= self._config.patience

    def _batch(
        self, dataset: PackedDataset, indices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids, seq_idx = dataset.sequences(indices)
        return ids.to(self._device), seq_idx.to(self._device)

    def _autocast(self) -> Any:
        dtype = getattr(torch, self._config.dtype)
        enabled = dtype != torch.float32
        return torch.autocast(self._device.type, dtype if enabled else None, enabled=enabled)

    def _log(self, values: dict[str, Any]) -> None:
        """Append a line to the metrics file."""
        self._state.metrics_lines += 1
        if not self._ranks.first:
            return
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self._name, **values}) + "\n")
