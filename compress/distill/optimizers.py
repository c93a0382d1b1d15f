"""The optimizer of a stage: parameter groups, learning rates, and the state to save."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.saved_states import SavedStates, Tensors
from hybridize.compress.distill.stages.base import Stage

_BETAS = (0.9, 0.95)
_FUSED = ("cpu", "cuda")
"""Devices on which one kernel updates a parameter. On a CPU, it takes a quarter of the time."""


class StageOptimizer:
    """AdamW, or Muon for the matrices of mixers and AdamW for the other parameters.

    Args:
        name: the stage's name.
        stage: has the parameters.
        config: the options.
    """

    def __init__(self, name: str, stage: Stage, config: DistillConfig) -> None:
        self._parameters = stage.parameters
        new = set(stage.pair.mixers())
        self._rates = {
            True: config.learning_rate_of(name),
            False: config.other_learning_rate_of(name),
        }
        groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for muon, of_new, decayed, sharded in product((True, False), repeat=4):
            members = [
                p
                for n, p in stage.parameters.items()
                if (config.optimizer == "muon" and _is_for_muon(n, p)) == muon
                and (n in new) == of_new
                and (p.ndim > 1) == decayed  # only matrices have weight decay
                and isinstance(p, DTensor) == sharded  # these cannot share a group with others
            ]
            if members:
                group = {"params": members, "lr": self._rates[of_new], "of_new_mixers": of_new}
                group["weight_decay"] = config.weight_decay if decayed else 0.0
                groups[muon].append(group)
        self._optimizers: list[torch.optim.Optimizer] = []
        if groups[True]:
            # The learning rates of AdamW then suit Muon too (Liu et al. 2025, arXiv 2502.16982).
            self._optimizers.append(torch.optim.Muon(groups[True], adjust_lr_fn="match_rms_adamw"))
        if groups[False]:
            device = next(iter(stage.parameters.values())).device.type
            self._optimizers.append(
                torch.optim.AdamW(groups[False], betas=_BETAS, fused=device in _FUSED)
            )

    def set_learning_rates(self, factor: float) -> dict[str, float]:
        """Set the learning rates to a fraction of their peaks.

        Returns:
            The rate of new mixers, and the other rate if there is one, by their names in metrics.
        """
        for group in self._groups():
            group["lr"] = self._rates[group["of_new_mixers"]] * factor
        rates = {"learning_rate": self._rates[True] * factor}
        if self._rates[False] != self._rates[True]:
            rates["other_learning_rate"] = self._rates[False] * factor
        return rates

    def step(self) -> None:
        """Update the parameters."""
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Delete all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> Tensors:
        """Return whatever state the optimizers have, as ``optimizer.KEY.PARAMETER``."""
        return {
            f"optimizer.{key}.{name}": value
            for name, parameter in self._parameters.items()
            for optimizer in self._optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def prepare(self, states: SavedStates) -> None:
        """Create tensors for the saved state, so that `SavedStates.load` can fill `tensors`."""
        saved = states.layout()
        owners = {id(p): (o, g) for o in self._optimizers for g in o.param_groups
                  for p in g["params"]}  # fmt: skip
        for stored, (shape, dtype) in saved.items():
            kind, _, rest = stored.partition(".")
            key, _, name = rest.partition(".")
            if kind != "optimizer" or name not in self._parameters:
                continue
            parameter = self._parameters[name]
            optimizer, group = owners[id(parameter)]
            if shape == parameter.shape:
                value = torch.zeros_like(parameter, dtype=dtype)
            else:  # such as the number of steps; torch keeps it on the CPU unless a kernel needs it
                device = parameter.device if group.get("fused") else "cpu"
                value = torch.zeros(shape, dtype=dtype, device=device)
            optimizer.state[parameter][key] = value

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self._optimizers:
            yield from optimizer.param_groups


def _is_for_muon(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon updates a parameter: a matrix, but not embeddings or the head."""
    return parameter.ndim == 2 and ".mixer." in name
