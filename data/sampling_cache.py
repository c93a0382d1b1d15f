"""A cache for sampling, with preallocated tensors and rows that can be reset."""

import torch
from transformers.cache_utils import DynamicLayer
from typing_extensions import override

from hybridize.modeling.cache.hybrid import HybridCache, ssm_states
from hybridize.modeling.config import HybridConfig


class _PreallocatedLayer(DynamicLayer):
    """Keys and values in tensors of their final size; attention sees views of the filled part.

    transformers' dynamic layer copies its tensors at every token. Its static layer makes attention
    read the empty part as well.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self._max_length = max_length
        self._filled = 0

    @override
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._all_keys, self._all_values = (
                states.new_empty(*states.shape[:2], self._max_length, states.shape[-1])
                for states in (key_states, value_states)
            )
        begin, self._filled = self._filled, self._filled + key_states.shape[-2]
        self._all_keys[:, :, begin : self._filled] = key_states
        self._all_values[:, :, begin : self._filled] = value_states
        self.keys = self._all_keys[:, :, : self._filled]
        self.values = self._all_values[:, :, : self._filled]
        return self.keys, self.values


class SamplingCache(HybridCache):
    """A cache for rows that are sampled side by side, one token at a time.

    Args:
        config: of the model that generates.
        max_length: maximum number of tokens per row.
    """

    def __init__(self, config: HybridConfig, max_length: int) -> None:
        super().__init__(config)
        self.layers = [
            _PreallocatedLayer(max_length) if type(layer) is DynamicLayer else layer
            for layer in self.layers
        ]

    def reset_states(self, rows: torch.Tensor) -> None:
        """Set the convolution and SSM states of some rows to zero.

        Keys and values are not changed. The attention mask has to hide them.

        Args:
            rows: ``(batch,)`` bool.
        """
        for layer in self.layers:
            for states in ssm_states(layer):
                for state in states.values():
                    if state is not None:
                        state[rows] = 0
