"""The operations a hybrid is made of: one public signature each, several implementations.

`registry.implementation` chooses by the tensors' device. Tensors are batch first and
time second; states are float32 or wider whatever the activations are.
"""

import torch
from torch import nn

from hybridize.kernels.registry import implementation

__all__ = [
    "causal_conv1d",
    "causal_conv1d_step",
    "fp8_linear",
    "fp8_quantize",
    "fp8_scale",
    "gated_rms_norm",
    "linear",
    "linear_kl_divergence",
    "linear_topk_kl_divergence",
    "mamba2_step",
    "patch",
    "rms_norm",
    "squared_relu",
    "squared_relu_mlp",
    "ssd_scan",
    "ssd_step",
    "swiglu",
    "unpatch",
]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Scale ``x`` to unit root mean square over its last dimension, times ``weight``.

    Args:
        x: ``(..., width)``, any floating dtype; the mean is taken in float32 or wider.
        weight: ``(width,)``.
        eps: added to the mean square.

    Returns:
        ``(..., width)`` in the dtype of ``x`` (Zhang & Sennrich 2019, arXiv 1910.07467).
    """
    return implementation("rms_norm", x.device)(x, weight, eps)


def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    group_size: int,
    norm_before_gate: bool = False,
) -> torch.Tensor:
    """Gate with SiLU and normalize, each group of channels by itself.

    Args:
        x, gate: ``(..., width)``.
        weight: ``(width,)``.
        eps: added to each group's mean square.
        group_size: channels that share a mean square; divides ``width``.
        norm_before_gate: normalize first and gate afterwards; Mamba-2 gates first.

    Returns:
        ``(..., width)`` in the dtype of ``x``.
    """
    return implementation("gated_rms_norm", x.device)(
        x, gate, weight, eps, group_size=group_size, norm_before_gate=norm_before_gate
    )


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Gate with SiLU: what stands between a feed-forward block's linear layers.

    Args:
        gate, up: ``(..., width)``, of one dtype.

    Returns:
        ``silu(gate) * up`` (Shazeer 2020, arXiv 2002.05202, equation 6).
    """
    return implementation("swiglu", gate.device)(gate, up)


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """Square what is positive of ``x``; the rest is 0 (So et al. 2021, arXiv 2109.08668)."""
    return implementation("squared_relu", x.device)(x)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Do a linear layer, fast in bfloat16 and float16 on processors that multiply neither, too.

    Args:
        x: ``(..., columns)``; like ``weight``, or cast as autocast says.
        weight: ``(rows, columns)``.
        bias: ``(rows,)`` or None.

    Returns:
        ``x @ weight.T + bias``, ``(..., rows)``.
    """
    return implementation("linear", x.device)(x, weight, bias)


def squared_relu_mlp(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do a whole feed-forward block without a gate, with little memory for its backward.

    What lies between the two products exists for some of the tokens at a time, and is computed
    again in the backward: one product more, for a memory that does not grow with ``width``.

    Args:
        x: ``(..., hidden)``.
        up: ``(width, hidden)``, the first layer's weight.
        down: ``(out, width)``, the second one's.
        up_bias: ``(width,)``.
        down_bias: ``(out,)``.

    Returns:
        ``squared_relu(x @ up.T + up_bias) @ down.T + down_bias``, ``(..., out)``.
    """
    return implementation("squared_relu_mlp", x.device)(x, up, down, up_bias, down_bias)


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    conv_state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve each channel with its own causal filter, then apply SiLU.

    Args:
        x: ``(batch, length, channels)``.
        weight: ``(channels, width)``, the oldest tap first.
        bias: ``(channels,)``.
        conv_state: ``(batch, width - 1, channels)``, the inputs just before ``x``; zeros if None.
        seq_idx: ``(batch, length)`` integers; neighbors with different ones belong to
            different packed sequences and do not see each other. The conv_state belongs to the
            first token's sequence.

    Returns:
        ``(batch, length, channels)`` and the last ``width - 1`` inputs, for the next call; zeros
        in place of those that are not of the last token's sequence.
    """
    return implementation("causal_conv1d", x.device)(
        x, weight, bias, conv_state=conv_state, seq_idx=seq_idx
    )


def causal_conv1d_step(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do `causal_conv1d` for one token, moving ``conv_state`` on in place.

    Args:
        x: ``(batch, channels)``.
        conv_state: ``(batch, width - 1, channels)``; changed.
        weight: ``(channels, width)``.
        bias: ``(channels,)``.

    Returns:
        ``(batch, channels)``.
    """
    return implementation("causal_conv1d_step", x.device)(x, conv_state, weight, bias)


def ssd_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_state: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run Mamba-2's recurrence over a sequence (Dao & Gu 2024, arXiv 2405.21060, equation 1).

    With ``s = clamp(softplus(dt + dt_bias), *dt_limit)``, per head::

        state[t] = exp(s[t] * A) * state[t - 1] + s[t] * outer(x[t], B[t])
        y[t]     = state[t] @ C[t] + D * x[t]

    Args:
        x: ``(batch, length, heads, head_dim)``.
        dt: ``(batch, length, heads)``, before bias and softplus; ``-inf`` makes a token leave
            no trace (with the lower limit 0).
        A: ``(heads,)``, negative.
        B, C: ``(batch, length, groups, d_state)``; heads of a group, neighbors, share them.
        D: ``(heads,)``, the skip connection.
        dt_bias: ``(heads,)``.
        dt_limit: bounds on the step.
        initial_state: ``(batch, heads, head_dim, d_state)``; zeros if None.
        seq_idx: ``(batch, length)`` integers; the state is cleared where they change. The
            initial state belongs to the first token's sequence.
        chunk_size: tokens per chunk; chosen for the device if None. Changes no result
            beyond rounding.

    Returns:
        ``y`` like ``x``, and the last state, ``(batch, heads, head_dim, d_state)`` in
        float32 or wider.
    """
    return implementation("ssd_scan", x.device)(
        x,
        dt,
        A,
        B,
        C,
        D=D,
        dt_bias=dt_bias,
        dt_limit=dt_limit,
        initial_state=initial_state,
        seq_idx=seq_idx,
        chunk_size=chunk_size,
    )


def ssd_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> torch.Tensor:
    """Do `ssd_scan` for one token, moving ``state`` on in place.

    Args:
        state: ``(batch, heads, head_dim, d_state)``, float32 or wider; changed.
        x: ``(batch, heads, head_dim)``.
        dt: ``(batch, heads)``.
        A: ``(heads,)``.
        B, C: ``(batch, groups, d_state)``.
        D, dt_bias: ``(heads,)``.
        dt_limit: bounds on the step.

    Returns:
        ``(batch, heads, head_dim)`` in the dtype of ``x``.
    """
    return implementation("ssd_step", x.device)(
        state, x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=dt_limit
    )


def mamba2_step(
    projected: torch.Tensor,
    conv_state: torch.Tensor,
    state: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    A_log: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    *,
    group_size: int,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> torch.Tensor:
    """Do all that stands between the projections of a Mamba-2 block, for one token.

    That is `causal_conv1d_step`, `ssd_step` and `gated_rms_norm`, gated first; ``conv_state`` and
    ``state`` move on in place.

    Args:
        projected: ``(batch, inner + channels + heads)``: the gate, what is convolved (x, B and C),
            and dt, with ``inner = heads * head_dim``, ``channels = inner + 2 * groups * d_state``.
        conv_state: ``(batch, width - 1, channels)``; changed.
        state: ``(batch, heads, head_dim, d_state)``, float32 or wider; changed.
        conv_weight: ``(channels, width)``.
        conv_bias: ``(channels,)``.
        A_log: ``(heads,)``, the logarithm of ``-A``.
        D, dt_bias: ``(heads,)``.
        norm_weight: ``(inner,)``.
        eps: added to each norm's mean square.
        group_size: channels that share a mean square; divides ``inner``.
        dt_limit: bounds on the step.

    Returns:
        ``(batch, inner)`` in the dtype of ``projected``.
    """
    return implementation("mamba2_step", projected.device)(
        projected,
        conv_state,
        state,
        conv_weight,
        conv_bias,
        A_log,
        D,
        dt_bias,
        norm_weight,
        eps,
        group_size=group_size,
        dt_limit=dt_limit,
    )


def fp8_scale(
    x: torch.Tensor, granularity: str, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> torch.Tensor:
    """Return the scales with which the largest magnitudes become the largest FP8 number.

    Where all is zero, the scale is 1.

    Args:
        x: ``(..., rows, columns)``.
        granularity: see `fp8_quantize`.
        dtype: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.

    Returns:
        The scales, in float32 or wider; see `fp8_quantize`.
    """
    return implementation("fp8_scale", x.device)(x, granularity, dtype=dtype)


def fp8_quantize(
    x: torch.Tensor,
    granularity: str,
    *,
    scale: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide by a scale and round to the nearest FP8 number, ties to even (arXiv 2209.05433).

    Magnitudes beyond the largest FP8 number (448 for E4M3) become that number, never NaN. Where
    ``x`` has NaN, so has the result.

    Args:
        x: ``(..., rows, columns)``.
        granularity: what shares a scale: the ``tensor``, a ``row``, a ``group`` of 128 columns of
            a row, or a ``block`` of 128 x 128.
        scale: take this one rather than that of the largest magnitude.
        dtype: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.

    Returns:
        FP8 numbers like ``x``, and the scales to multiply them by, in float32 or wider: ``(1,)``,
        ``(..., rows, 1)``, ``(..., rows, columns / 128)``, or ``(..., rows / 128, columns / 128)``,
        rounded up.
    """
    return implementation("fp8_quantize", x.device)(x, granularity, scale=scale, dtype=dtype)


def fp8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activations: str,
    input_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do a linear layer on FP8 numbers, adding up in float32; there is no gradient.

    Args:
        x: ``(..., columns)``, quantized on the way in.
        weight: ``(rows, columns)`` in float8_e4m3fn.
        weight_scale: as `fp8_quantize` returns it for ``tensor``, ``row`` or ``block``.
        bias: ``(rows,)``.
        activations: granularity for ``x``: ``tensor``, ``row`` or ``group``.
        input_scale: ``(1,)``, the scale for ``x`` where it is known beforehand (``tensor``).

    Returns:
        ``(..., rows)`` in the dtype of ``x``.
    """
    return implementation("fp8_linear", x.device)(
        x, weight, weight_scale, bias, activations=activations, input_scale=input_scale
    )


def linear_kl_divergence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target_hidden: torch.Tensor,
    target_weight: torch.Tensor,
    *,
    temperature: float = 1.0,
    scales: tuple[float, float] = (1.0, 1.0),
    labels: torch.Tensor | None = None,
    label_weight: float = 0.0,
    mask: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Return how far a student's next-token distribution is from its teacher's.

    The forward KL divergence, teacher first, in nats per token, times the temperature squared
    (Hinton et al. 2015, arXiv 1503.02531, section 2). The logits of no more than ``chunk_size``
    tokens exist at a time, in the forward and in the backward.

    Args:
        hidden: ``(tokens, hidden)``, what the student's head sees; gets a gradient.
        weight: ``(vocab, hidden)``, the student's head; gets a gradient.
        target_hidden: ``(tokens, target_hidden)``, what the teacher's head sees.
        target_weight: ``(vocab, target_hidden)``.
        temperature: what all logits are divided by.
        scales: what the student's and the teacher's logits are multiplied by before that.
        labels: ``(tokens,)``, the next tokens; negative where there is none.
        label_weight: share of the cross-entropy to ``labels`` in the loss, 0 to 1; a token
            without a label has the divergence alone.
        mask: ``(tokens,)``, False for tokens that do not count; all count if None.
        chunk_size: tokens at a time; as many as fill 64 MiB if None.

    Returns:
        A scalar in float32 or wider: the mean over the tokens that count, 0 if none does.
    """
    return implementation("linear_kl_divergence", hidden.device)(
        hidden,
        weight,
        target_hidden,
        target_weight,
        temperature=temperature,
        scales=scales,
        labels=labels,
        label_weight=label_weight,
        mask=mask,
        chunk_size=chunk_size,
    )


def linear_topk_kl_divergence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    log_probs: torch.Tensor,
    *,
    scale: float = 1.0,
    labels: torch.Tensor | None = None,
    label_weight: float = 0.0,
    mask: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Do `linear_kl_divergence` to a teacher of which the likeliest tokens alone are known.

    What they leave over is one more outcome, on both sides, so that the loss is a true
    divergence, and a lower bound of the full one.

    Args:
        hidden, weight, labels, label_weight, mask, chunk_size: see `linear_kl_divergence`.
        indices: ``(tokens, k)``, which tokens, all different.
        log_probs: ``(tokens, k)``, the teacher's log-probabilities of them.
        scale: what the student's logits are multiplied by.
    """
    return implementation("linear_topk_kl_divergence", hidden.device)(
        hidden,
        weight,
        indices,
        log_probs,
        scale=scale,
        labels=labels,
        label_weight=label_weight,
        mask=mask,
        chunk_size=chunk_size,
    )


def patch(model: nn.Module) -> int:
    """Run a transformers model's Mamba-2 blocks and norms with these kernels; `unpatch` undoes it.

    Weights, caches, ``generate`` and gradients work as before. Packed rows work too, given
    ``seq_idx``, ``(batch, length)``.

    Args:
        model: transformers' own Granite-hybrid, Bamba, Nemotron-H or Mamba-2 model, or a part
            of one.

    Returns:
        How many mixers were patched.

    Raises:
        InputError: the model has no Mamba-2 mixer that is known here, or one whose convolution
            is not followed by SiLU.
    """
    from hybridize.kernels.stock import patch as patch_stock

    return patch_stock(model)


def unpatch(model: nn.Module) -> None:
    """Give a model that was patched its own code back; any other stays as it is."""
    from hybridize.kernels.stock import unpatch as unpatch_stock

    unpatch_stock(model)
