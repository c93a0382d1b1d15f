"""The two graphs of a model: one reads a prompt, one goes on by a token."""

from dataclasses import dataclass

import torch
from torch import nn

from hybridize.errors import InputError
from hybridize.exporters import blocks
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.mlp import FeedForward
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model import HybridForCausalLM

_STEADY_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class StateSpec:
    """One state of a block.

    Attributes:
        name: ``key.3``, ``value.3``, ``window.4`` or ``state.4``, after the block's place.
        shape: names of dimensions that vary, and sizes of the others.
    """

    name: str
    shape: tuple[str | int, ...]


def state_specs(config: HybridConfig) -> list[StateSpec]:
    """Return all states in the order in which the graphs take and give them."""
    specs = []
    for index, sizes in enumerate(config.blocks):
        if isinstance(sizes, AttentionSizes):
            shape = ("batch", sizes.num_kv_heads, "past", sizes.head_dim)
            specs += [StateSpec(f"key.{index}", shape), StateSpec(f"value.{index}", shape)]
        elif isinstance(sizes, MambaSizes):
            window = ("batch", sizes.conv_kernel - 1, sizes.conv_channels)
            state = ("batch", sizes.num_heads, sizes.head_dim, sizes.d_state)
            specs += [StateSpec(f"window.{index}", window), StateSpec(f"state.{index}", state)]
    return specs


def require_exportable(config: HybridConfig, where: str) -> None:
    """Raise an `InputError` where a graph could not do what the model does."""
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if config.head_dim is not None and kind not in _STEADY_ROPE:
        raise InputError(
            f"{where}: its RoPE is of the type {kind!r}, whose frequencies depend on the length; "
            f"ONNX takes {', '.join(_STEADY_ROPE)}"
        )


class Graph(nn.Module):
    """A model whose states are arguments and results.

    ``forward(input_ids)`` reads prompts, ``forward(input_ids, *states)`` goes on by one token. Both
    return the last token's logits, ``(batch, vocab)``, and the states.
    """

    def __init__(self, model: HybridForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Predict the token after ``input_ids``, ``(batch, length)``; see the class."""
        config, inner = self.model.config, self.model.model
        x = inner.embed_tokens(input_ids) * config.embedding_multiplier
        pairs = iter(zip(states[::2], states[1::2], strict=True))
        out: list[torch.Tensor] = []
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
                    y, after = blocks.attention(mixer, y, rotary, past)
                else:
                    assert isinstance(mixer, Mamba2)
                    y, after = blocks.mamba(mixer, y, past)
                out += after
            x = x + y * config.residual_multiplier
        last = blocks.normalize(inner.norm, x[:, -1])
        return self.model.lm_head(last) / config.logits_scaling, *out

    def _rotary(self, x: torch.Tensor, states: tuple[torch.Tensor, ...]) -> blocks.Rotary:
        embedding = self.model.model.rotary_emb
        if embedding is None:
            return None
        places = torch.arange(x.shape[1], device=x.device)[None]
        names = [spec.name for spec in state_specs(self.model.config)]
        for name, state in zip(names, states, strict=False):
            if name.startswith("key."):
                places = places + state.shape[2]
                break
        angles = places[..., None].to(x.dtype) * embedding.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        scale = embedding.attention_scaling
        return angles.cos() * scale, angles.sin() * scale
