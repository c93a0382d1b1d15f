"""The mixers of a hybrid in operations that ``torch.export`` can trace, with states as arguments.

There are no loops, no shapes that depend on data and no custom gradients, so that one graph serves
any batch size and length. The results are those of the model's own blocks, up to rounding.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from hybridize.kernels.reference.norm import gated_rms_norm, rms_norm
from hybridize.kernels.reference.ssd_step import discretize, repeat_groups
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.mlp import FeedForward
from hybridize.modeling.layers.norm import RMSNorm
from hybridize.modeling.layers.rope import rotate

CHUNK = 64
States = tuple[torch.Tensor, torch.Tensor]
Rotary = tuple[torch.Tensor, torch.Tensor] | None


def normalize(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a model's norm."""
    assert isinstance(norm, RMSNorm)
    return rms_norm(x, norm.weight, norm.eps)


def feed_forward(mlp: FeedForward, x: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply an MLP: ``(batch, length, hidden)`` to the same shape."""
    act = (lambda y: F.relu(y) ** 2) if activation == "relu2" else ACT2FN[activation]
    up = mlp.up_proj(x)
    return mlp.down_proj(act(up) if mlp.gate_proj is None else act(mlp.gate_proj(x)) * up)


def attention(
    mixer: Attention, x: torch.Tensor, rotary: Rotary, past: States | None
) -> tuple[torch.Tensor, States]:
    """Apply causal attention over the past and the new tokens.

    Args:
        mixer: the model's mixer.
        x: ``(batch, length, hidden)``.
        rotary: cosine and sine of the new tokens' positions.
        past: keys and values, ``(batch, kv_heads, past, head_dim)``; None at the start of a text.

    Returns:
        ``(batch, length, hidden)``, and the keys and values with the new tokens appended.
    """
    sizes, (batch, length, _) = mixer.sizes, x.shape
    q = mixer.q_proj(x).view(batch, length, sizes.num_heads, sizes.head_dim)
    k = mixer.k_proj(x).view(batch, length, sizes.num_kv_heads, sizes.head_dim)
    v = mixer.v_proj(x).view(batch, length, sizes.num_kv_heads, sizes.head_dim).transpose(1, 2)
    if sizes.qk_norm:
        q, k = normalize(mixer.q_norm, q), normalize(mixer.k_norm, k)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    if sizes.rope and rotary is not None:
        q, k = rotate(q, *rotary), rotate(k, *rotary)
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    groups = sizes.num_heads // sizes.num_kv_heads
    scores = q @ _repeat_heads(k, groups).mT * mixer.scaling
    position = torch.arange(k.shape[2], device=x.device)
    distance = position[k.shape[2] - length :, None] - position
    masked = distance < 0
    if sizes.sliding_window is not None:
        masked = masked | (distance >= sizes.sliding_window)
    weights = scores.masked_fill(masked, torch.finfo(x.dtype).min).softmax(-1)
    y = (weights @ _repeat_heads(v, groups)).transpose(1, 2)
    return mixer.o_proj(y.reshape(batch, length, sizes.num_heads * sizes.head_dim)), (k, v)


def _repeat_heads(kv: torch.Tensor, groups: int) -> torch.Tensor:
    return kv.repeat_interleave(groups, dim=1) if groups > 1 else kv


def mamba(mixer: Mamba2, x: torch.Tensor, past: States | None) -> tuple[torch.Tensor, States]:
    """Apply a Mamba-2 mixer to a prompt, or to one token and the states before it.

    Args:
        mixer: the model's mixer.
        x: ``(batch, length, hidden)``; the length is 1 if there is a past.
        past: convolution state ``(batch, conv_kernel - 1, channels)`` and SSM state
            ``(batch, heads, head_dim, d_state)``; None at the start of a text.

    Returns:
        ``(batch, length, hidden)``, and both states after the last token.
    """
    sizes = mixer.sizes
    gate, inputs, dt = mixer.in_proj(x).split(
        (sizes.d_inner, sizes.conv_channels, sizes.num_heads), dim=-1
    )
    if past is None:
        conv_state = x.new_zeros(x.shape[0], sizes.conv_kernel - 1, sizes.conv_channels)
    else:
        conv_state = past[0]
    mixed, conv_state = _convolve(mixer, inputs, conv_state)
    values, B, C = mixed.split(
        (sizes.d_inner, sizes.n_groups * sizes.d_state, sizes.n_groups * sizes.d_state), dim=-1
    )
    values = values.unflatten(-1, (sizes.num_heads, sizes.head_dim))
    B = repeat_groups(B.unflatten(-1, (sizes.n_groups, sizes.d_state)), sizes.num_heads)
    C = repeat_groups(C.unflatten(-1, (sizes.n_groups, sizes.d_state)), sizes.num_heads)
    dt = discretize(dt, mixer.dt_bias, sizes.dt_limit)
    log_decay = -dt * mixer.A_log.exp()
    scaled = values * dt[..., None]
    if past is None:
        y, state = scan(scaled, log_decay, B, C)
    else:
        added = scaled[:, 0, :, :, None] * B[:, 0, :, None, :]
        state = past[1] * log_decay[:, 0, :, None, None].exp() + added
        y = (state * C[:, 0, :, None, :]).sum(-1)[:, None]
    y = (y + mixer.D[:, None] * values).flatten(-2)
    y = gated_rms_norm(y, gate, mixer.norm.weight, mixer.norm.eps, group_size=mixer.norm.group_size)
    return mixer.out_proj(y), (conv_state, state)


def _convolve(
    mixer: Mamba2, inputs: torch.Tensor, conv_state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the causal depthwise convolution and SiLU; return the result and the new state."""
    before, length = mixer.sizes.conv_kernel - 1, inputs.shape[1]
    padded = torch.cat([conv_state, inputs], dim=1)
    taps = mixer.conv1d.weight.squeeze(1)
    total = padded[:, before : before + length] * taps[:, before]
    for tap in range(before):
        total = total + padded[:, tap : tap + length] * taps[:, tap]
    if mixer.conv1d.bias is not None:
        total = total + mixer.conv1d.bias
    return F.silu(total), padded[:, length:]


def scan(
    x: torch.Tensor, log_decay: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recurrence chunk by chunk, in parallel (Dao & Gu 2024, arXiv 2405.21060, listing 1).

    The input is padded with ``CHUNK - 1`` zeros and cut to a multiple of ``CHUNK``. The number of
    chunks is then a quotient of the length, which a graph can express.

    Args:
        x: ``(batch, length, heads, head_dim)``, multiplied by dt.
        log_decay: ``(batch, length, heads)``.
        B, C: ``(batch, length, heads, d_state)``.

    Returns:
        ``(batch, length, heads, head_dim)`` and the last state
        ``(batch, heads, head_dim, d_state)``.
    """
    batch, length, heads, head_dim = x.shape
    chunks = (length + CHUNK - 1) // CHUNK

    def chunked(tensor: torch.Tensor) -> torch.Tensor:
        padded = torch.cat([tensor, tensor.new_zeros(batch, CHUNK - 1, *tensor.shape[2:])], 1)
        whole = padded[:, : chunks * CHUNK].reshape(batch, chunks, CHUNK, *tensor.shape[2:])
        return whole.transpose(2, 3)  # (batch, chunks, heads, tokens, …)

    x, B, C = chunked(x), chunked(B), chunked(C)
    total = chunked(log_decay).cumsum(-1)  # (batch, chunks, heads, tokens)
    between = total[..., :, None] - total[..., None, :]
    causal = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).tril()
    weights = (C @ B.mT) * between.masked_fill(~causal, -math.inf).exp()
    added = (x * (total[..., -1:] - total).exp()[..., None]).mT @ B
    # Decay from the end of each chunk to the start of each later chunk. It is a sum over the chunks
    # between them: a difference of two long sums would lose precision.
    decay = total[..., -1].transpose(1, 2)  # (batch, heads, chunks)
    chunk = torch.arange(chunks, device=x.device)
    after = chunk[:, None] > chunk  # rows are the later chunks
    gaps = decay[..., :, None].expand(-1, -1, -1, chunks).masked_fill(~after, 0.0).cumsum(-2)
    carried = gaps.masked_fill(chunk[:, None] < chunk, -math.inf).exp()
    ends = torch.einsum("bhij,bjhps->bihps", carried, added)
    starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
    y = weights @ x + (C * total.exp()[..., None]) @ starts.mT
    y = y.transpose(2, 3).reshape(batch, chunks * CHUNK, heads, head_dim)
    return y[:, :length], ends[:, -1]
