"""The budgets that the options of `prune` ask for."""

from collections.abc import Mapping
from typing import Any

import torch

from hybridize.compress.prune.budget import Budget, memory_budget, parameter_budget
from hybridize.compress.prune.config import PruneConfig
from hybridize.compress.prune.latency import Latency, latency_budget
from hybridize.modeling.model_spec import ModelSpec


def requested_budgets(
    options: PruneConfig,
    config: ModelSpec,
    element_size: int,
    device: torch.device,
    dtype: torch.dtype,
    known_latency: Mapping[str, Any] | None = None,
) -> list[Budget]:
    """Return the budgets, all of which must be met.

    Args:
        options: the options of `prune`.
        config: the model.
        element_size: bytes per element of the stored weights.
        device, dtype: where blocks are timed, and in which dtype.
        known_latency: the fields of a `Latency` that an interrupted run measured.
    """
    budgets: list[Budget] = []
    if options.params is not None:
        budgets.append(parameter_budget(options.params, config))
    if options.memory is not None:
        bits = {"weight_bits": options.weight_bits, "kv_bits": options.kv_bits}
        budgets.append(memory_budget(options.memory, element_size, **bits))
    if options.latency is not None and known_latency is not None:
        budgets.append(Latency(**known_latency))
    elif options.latency is not None:
        budgets.append(
            latency_budget(
                options.latency, config, options.axes, options.multiple_of, device, dtype
            )
        )
    return budgets
