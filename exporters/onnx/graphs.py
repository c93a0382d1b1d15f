"""A model as a function of tokens and states, from which two graphs are traced.

One graph reads a prompt, the other decodes one token.
"""

from dataclasses import dataclass

import torch
from torch import nn

from hybridize.errors import InputError
from hybridize.exporters.exportable_rope import EXPORTABLE_ROPE_TYPES, rope_type
from hybridize.exporters.onnx import traceable_blocks as blocks
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.mlp import FeedForward
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model import HybridForCausalLM


@dataclass(frozen=True)
class StateSpec:
    """One state of a block.

    Attributes:
        name: ``key.N``, ``value.N``, ``window.N`` (the convolution's) or ``state.N`` (the SSM's) of
            block N.
        shape: its dimensions: an int for a fixed size, a name for one that varies.
    """

    name: str
    shape: tuple[str | int, ...]


def state_specs(config: HybridConfig) -> list[StateSpec]:
    """Return all states, in the order in which the graphs take and return them."""
    specs = []
    for index, sizes in enumerate(config.blocks):
        if isinstance(sizes, AttentionSizes):
            shape = ("batch", sizes.num_kv_heads, "past", sizes.head_dim)
            specs += [StateSpec(f"key.{index}", shape), StateSpec(f"value.{index}", shape)]
        elif isinstance(sizes, MambaSizes):
            conv_state = ("batch", sizes.conv_kernel - 1, sizes.conv_channels)
            ssm_state = ("batch", sizes.num_heads, sizes.head_dim, sizes.d_state)
            specs += [
                StateSpec(f"window.{index}", conv_state),
                StateSpec(f"state.{index}", ssm_state),
            ]
    return specs


def require_exportable(config: HybridConfig, source: str) -> None:
    """Check that ONNX graphs support the model.

    Raises:
        InputError: they do not; the message begins with ``source``.
    """
    if config.head_dim is not None and rope_type(config) not in EXPORTABLE_ROPE_TYPES:
        raise InputError(
            f"{source}: its RoPE type is {rope_type(config)!r}; "
            f"ONNX graphs can have {', '.join(EXPORTABLE_ROPE_TYPES)}"
        )


class Graph(nn.Module):
    """A model whose states are arguments and results.

    ``forward(input_ids)`` reads prompts; ``forward(input_ids, *states)`` decodes one token. Both
    return the last token's logits, ``(batch, vocab)``, and the states.
    """

    def __init__(self, model: HybridForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Predict the token that follows ``input_ids``, ``(batch, length)``."""
        config, inner = self.model.config, self.model.model
        x = inner.embed_tokens(input_ids) * config.embedding_multiplier
        pairs = iter(zip(states[::2], states[1::2], strict=True))
        new_states: list[torch.Tensor] = []
        rotary = self._rotary(x, states)
        for block, sizes in zip(inner.blocks, config.blocks, strict=True):
            mixer = block.mixer
            y = blocks.normalize(block.norm, x.to(block.norm.weight.dtype))
            if isinstance(mixer, FeedForward):
                assert isinstance(sizes, MLPSizes)
                y = blocks.feed_forward(mixer, y, sizes.activation)
            else:
                past = next(pairs) if states else None
                if isinstance(mixer, Attention):
                    y, block_states = blocks.attention(mixer, y, rotary, past)
                else:
                    assert isinstance(mixer, Mamba2)
                    y, block_states = blocks.mamba(mixer, y, past)
                new_states += block_states
            x = x + y * config.residual_multiplier
        last = blocks.normalize(inner.norm, x[:, -1])
        return self.model.lm_head(last) / config.logits_scaling, *new_states

    def _rotary(self, x: torch.Tensor, states: tuple[torch.Tensor, ...]) -> blocks.Rotary:
        """Return cosine and sine of the positions, which begin after those of the past keys."""
        embedding = self.model.model.rotary_emb
        if embedding is None:
            return None
        positions = torch.arange(x.shape[1], device=x.device)[None]
        names = [spec.name for spec in state_specs(self.model.config)]
        for name, state in zip(names, states, strict=False):
            if name.startswith("key."):
                positions = positions + state.shape[2]
                break
        angles = positions[..., None].to(x.dtype) * embedding.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        scale = embedding.attention_scaling
        return angles.cos() * scale, angles.sin() * scale
