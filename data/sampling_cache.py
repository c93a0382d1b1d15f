"""What sampling remembers: a cache with room from the start, whose rows can begin anew."""

import torch
from transformers.cache_utils import DynamicLayer

from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.config import HybridConfig


class _RoomyLayer(DynamicLayer):
    """Keys and values in tensors that are as long as they will ever be.

    A layer that grows is copied for every token, one that is full from the start has every token
    look at places that are still empty. This one hands out views of what is filled.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._filled = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values, ``(batch, kv_heads, new, head_dim)``, behind those before."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._all_keys, self._all_values = (
                states.new_empty(*states.shape[:2], self._room, states.shape[-1])
                for states in (key_states, value_states)
            )
        begin, self._filled = self._filled, self._filled + key_states.shape[-2]
        self._all_keys[:, :, begin : self._filled] = key_states
        self._all_values[:, :, begin : self._filled] = value_states
        self.keys = self._all_keys[:, :, : self._filled]
        self.values = self._all_values[:, :, : self._filled]
        return self.keys, self.values


class SamplingCache(HybridCache):
    """A cache for rows that are written token by token, side by side.

    Args:
        config: of the model that writes.
        room: the most tokens that a row will have.
    """

    def __init__(self, config: HybridConfig, room: int) -> None:
        super().__init__(config)
        self.layers = [
            _RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    def forget(self, rows: torch.Tensor) -> None:
        """Clear the convolution windows and states of some rows.

        Their keys and values stay, for an attention mask to hide.

        Args:
            rows: ``(batch,)`` bool.
        """
        for layer in self.layers:
            for states in (
                getattr(layer, "conv_states", {}),
                getattr(layer, "recurrent_states", {}),
            ):
                for state in states.values():
                    if state is not None:
                        state[rows] = 0
