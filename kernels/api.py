"""The operations that a hybrid is made of, each declared once.

A declaration is a signature and a docstring; `operation` makes it call the implementation for the
tensors' device. Tensors are batch first and time second. States are always float32 or wider.
"""

import torch

from hybridize.kernels.registry import operation


@operation
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Scale the last dimension to unit root mean square (Zhang & Sennrich 2019, arXiv 1910.07467).

    Args:
        x: ``(..., width)``, any floating dtype; the mean is computed in float32 or wider.
        weight: ``(width,)``, factors of the scaled numbers.
        eps: added to the mean square.

    Returns:
        ``(..., width)`` in the dtype of ``x``, or of ``weight`` if that is wider.
    """


@operation
def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    group_size: int,
    norm_before_gate: bool = False,
) -> torch.Tensor:
    """Gate with SiLU and normalize each group of channels separately.

    Args:
        x, gate: ``(..., width)``.
        weight: ``(width,)``.
        eps: added to each group's mean square.
        group_size: number of channels that share a mean square; divides ``width``.
        norm_before_gate: normalize first, then gate. Mamba-2 gates first.

    Returns:
        ``(..., width)`` in the dtype of ``x``, or of ``weight`` if that is wider.
    """


@operation
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Multiply ``up`` by SiLU of ``gate``: the activation of a gated MLP.

    Args:
        gate, up: ``(..., width)``, of the same dtype.

    Returns:
        ``silu(gate) * up`` (Shazeer 2020, arXiv 2002.05202, equation 6).
    """


@operation
def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """Return ``relu(x) ** 2`` (So et al. 2021, arXiv 2109.08668)."""


@operation
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Apply a linear layer. It is fast even on CPUs without native bf16/fp16 multiplication.

    Args:
        x: ``(..., in_features)``, in the dtype of ``weight`` unless autocast is on.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)`` or None.

    Returns:
        ``x @ weight.T + bias``, ``(..., out_features)``.
    """


@operation
def squared_relu_mlp(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply an MLP without a gate, with little memory for the backward pass.

    The activations of size ``width`` exist for a few tokens at a time, and the backward pass
    recomputes them. This costs one more matrix product, but memory does not grow with ``width``.

    Args:
        x: ``(..., hidden)``.
        up: ``(width, hidden)``, the first layer's weight.
        down: ``(out, width)``, the second layer's weight.
        up_bias: ``(width,)``.
        down_bias: ``(out,)``.

    Returns:
        ``squared_relu(x @ up.T + up_bias) @ down.T + down_bias``, ``(..., out)``.
    """


@operation
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
        seq_idx: ``(batch, length)`` integers that number the packed sequences. A token sees only
            tokens of its own sequence. ``conv_state`` belongs to the first token's sequence.

    Returns:
        ``(batch, length, channels)``, and the ``conv_state`` for the next call: the last
        ``width - 1`` inputs. Those that are not in the last token's sequence are zero.
    """


@operation
def causal_conv1d_step(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply `causal_conv1d` to one token and update ``conv_state`` in place.

    Args:
        x: ``(batch, channels)``.
        conv_state: ``(batch, width - 1, channels)``; updated.
        weight: ``(channels, width)``.
        bias: ``(channels,)``.

    Returns:
        ``(batch, channels)``.
    """


@operation
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

    With ``Δ = clamp(softplus(dt + dt_bias), *dt_limit)``, each head computes::

        state[t] = exp(Δ[t] * A) * state[t - 1] + Δ[t] * outer(x[t], B[t])
        y[t]     = state[t] @ C[t] + D * x[t]

    Args:
        x: ``(batch, length, heads, head_dim)``.
        dt: ``(batch, length, heads)``, before bias and softplus. A token whose dt is ``-inf``
            leaves the state unchanged (if the lower limit is 0).
        A: ``(heads,)``, negative.
        B, C: ``(batch, length, groups, d_state)``; consecutive heads form a group and share them.
        D: ``(heads,)``, the skip connection.
        dt_bias: ``(heads,)``.
        dt_limit: lower and upper limit of Δ.
        initial_state: ``(batch, heads, head_dim, d_state)``; zeros if None.
        seq_idx: ``(batch, length)`` integers that number the packed sequences; the state is reset
            to zero where they change. ``initial_state`` belongs to the first token's sequence.
        chunk_size: tokens per chunk; chosen for the device if None. Results depend on it only
            through rounding.

    Returns:
        ``y`` of the shape and dtype of ``x``, and the last state, ``(batch, heads, head_dim,
        d_state)`` in float32 or wider.
    """


@operation
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
    """Apply `ssd_scan` to one token and update ``state`` in place.

    Args:
        state: ``(batch, heads, head_dim, d_state)``, float32 or wider; updated.
        x: ``(batch, heads, head_dim)``.
        dt: ``(batch, heads)``.
        A: ``(heads,)``.
        B, C: ``(batch, groups, d_state)``.
        D, dt_bias: ``(heads,)``.
        dt_limit: lower and upper limit of Δ.

    Returns:
        ``(batch, heads, head_dim)`` in the dtype of ``x``.
    """


@operation
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
    """Decode one token in a Mamba-2 block, from its input projection to its output projection.

    This is `causal_conv1d_step`, `ssd_step` and `gated_rms_norm` (gate first).

    Args:
        projected: ``(batch, inner + channels + heads)``: the gate, the input of the convolution
            (x, B and C), and dt. Here ``inner = heads * head_dim``, and
            ``channels = inner + 2 * groups * d_state``.
        conv_state: ``(batch, width - 1, channels)``; updated in place.
        state: ``(batch, heads, head_dim, d_state)``, float32 or wider; updated in place.
        conv_weight: ``(channels, width)``.
        conv_bias: ``(channels,)``.
        A_log: ``(heads,)``, the logarithm of ``-A``.
        D, dt_bias: ``(heads,)``.
        norm_weight: ``(inner,)``.
        eps: added to each group's mean square.
        group_size: number of channels that share a mean square; divides ``inner``.
        dt_limit: lower and upper limit of Δ.

    Returns:
        ``(batch, inner)`` in the dtype of ``projected``.
    """


@operation
def fp8_scale(
    x: torch.Tensor, granularity: str, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> torch.Tensor:
    """Return the scales that map the largest magnitudes to the largest FP8 number.

    If all numbers that share a scale are zero, the scale is 1.

    Args:
        x: ``(..., rows, columns)``.
        granularity: see `fp8_quantize`.
        dtype: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.

    Returns:
        The scales, in float32 or wider; see `fp8_quantize`.
    """


@operation
def fp8_quantize(
    x: torch.Tensor,
    granularity: str,
    *,
    scale: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide by a scale and round to the nearest FP8 number, ties to even (arXiv 2209.05433).

    Magnitudes beyond the largest FP8 number (448 for E4M3) become that number, never NaN. NaN stays
    NaN.

    Args:
        x: ``(..., rows, columns)``.
        granularity: which numbers share a scale: the whole ``tensor``, a ``row``, a ``group`` of
            128 columns in a row, or a ``block`` of 128 x 128.
        scale: the scales to use instead of those of `fp8_scale`.
        dtype: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.

    Returns:
        FP8 numbers in the shape of ``x``, and the scales to multiply them by, in float32 or wider.
        The scales have the shape ``(1,)``, ``(..., rows, 1)``, ``(..., rows, ⌈columns / 128⌉)`` or
        ``(..., ⌈rows / 128⌉, ⌈columns / 128⌉)``.
    """


@operation
def fp8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activations: str,
    input_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a linear layer to FP8 numbers, with sums in float32. There is no gradient.

    Args:
        x: ``(..., in_features)``; quantized before the product.
        weight: ``(out_features, in_features)`` in float8_e4m3fn.
        weight_scale: as `fp8_quantize` returns it for ``tensor``, ``row`` or ``block``.
        bias: ``(out_features,)``.
        activations: granularity for ``x``: ``tensor``, ``row`` or ``group``.
        input_scale: ``(1,)``, a fixed scale for ``x`` (only with ``tensor``); computed if None.

    Returns:
        ``(..., out_features)`` in the dtype of ``x``.
    """


@operation
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
    """Return the KL divergence of a student's next-token distribution from its teacher's.

    This is KL(teacher ‖ student) in nats per token, times the temperature squared (Hinton et al.
    2015, arXiv 1503.02531, section 2). Both passes keep the logits of at most ``chunk_size`` tokens
    in memory.

    Args:
        hidden: ``(tokens, hidden)``, the input of the student's head; gets a gradient.
        weight: ``(vocab, hidden)``, the student's head; gets a gradient.
        target_hidden: ``(tokens, target_hidden)``, the input of the teacher's head.
        target_weight: ``(vocab, target_hidden)``, the teacher's head.
        temperature: divides all logits.
        scales: factors of the student's and the teacher's logits, applied before the temperature.
        labels: ``(tokens,)``, the correct next tokens; negative for tokens without a label.
        label_weight: weight of the cross-entropy to ``labels`` in the loss, 0 to 1. The weight of
            the divergence is ``1 - label_weight``, or 1 for tokens without a label.
        mask: ``(tokens,)``, False for tokens that do not count; None counts all tokens.
        chunk_size: tokens per chunk; None chooses as many as fill 64 MiB.

    Returns:
        A scalar in float32 or wider: the mean over the counted tokens, 0 if there are none.
    """


@operation
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
    """Return the KL divergence when only the teacher's top-k tokens are known.

    All other tokens are merged into one outcome, for the teacher and for the student. So the result
    is a KL divergence too, and a lower bound of `linear_kl_divergence`.

    Args:
        hidden, weight, labels, label_weight, mask, chunk_size: see `linear_kl_divergence`.
        indices: ``(tokens, k)``, the top-k tokens, all different.
        log_probs: ``(tokens, k)``, the teacher's log-probabilities of these tokens.
        scale: factor of the student's logits.

    Returns:
        A scalar in float32 or wider: the mean over the counted tokens, 0 if there are none.
    """
