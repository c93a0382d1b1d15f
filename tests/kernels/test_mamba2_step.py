"""A decoding step of a Mamba-2 block against its recurrence in plain float64 arithmetic."""

import math

import pytest
import torch
from random_operands import draw

from hybridize.kernels import mamba2_step

HEADS, HEAD_DIM, D_STATE, GROUPS, WIDTH = 6, 5, 7, 3, 4
INNER, SHARED = HEADS * HEAD_DIM, GROUPS * D_STATE
CHANNELS = INNER + 2 * SHARED


def parameters():
    return {
        "conv_weight": draw(CHANNELS, WIDTH, seed=1),
        "conv_bias": draw(CHANNELS, seed=2),
        "A_log": draw(HEADS, seed=3),
        "D": draw(HEADS, seed=4),
        "dt_bias": draw(HEADS, seed=5),
        "norm_weight": draw(INNER, seed=6),
    }


def silu(x):
    return x / (1 + torch.exp(-x))


def recurrence(tokens, state, group_size, dt_limit, p):
    """Return the outputs of ``(batch, length, …)`` with an empty conv_state, and the last state."""
    batch, length, _ = tokens.shape
    outputs = torch.full((batch, length, INNER), math.nan, dtype=torch.float64)
    state = state.clone()
    gate, inputs, dt = tokens.split((INNER, CHANNELS, HEADS), -1)
    for b in range(batch):
        for t in range(length):
            total = p["conv_bias"].clone()
            for tap in range(WIDTH):
                if (back := t - (WIDTH - 1) + tap) >= 0:
                    total += p["conv_weight"][:, tap] * inputs[b, back]
            x, B, C = silu(total).split((INNER, SHARED, SHARED))
            y = torch.empty(INNER, dtype=torch.float64)
            for h in range(HEADS):
                delta = math.log1p(math.exp(float(dt[b, t, h] + p["dt_bias"][h])))
                delta = min(max(delta, dt_limit[0]), dt_limit[1])
                channels = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
                group = h // (HEADS // GROUPS)
                shared = slice(group * D_STATE, (group + 1) * D_STATE)
                decay = math.exp(-delta * math.exp(float(p["A_log"][h])))
                state[b, h] = decay * state[b, h] + delta * torch.outer(x[channels], B[shared])
                y[channels] = state[b, h] @ C[shared] + p["D"][h] * x[channels]
            y = (y * silu(gate[b, t])).view(-1, group_size)
            y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            outputs[b, t] = p["norm_weight"] * y.flatten()
    return outputs, state


@pytest.mark.parametrize("group_size", [INNER, INNER // GROUPS])
@pytest.mark.parametrize("dt_limit", [(0.0, math.inf), (0.3, 0.9)])
def test_steps_equal_the_whole_sequence(group_size, dt_limit):
    tokens, state = draw(2, 6, INNER + CHANNELS + HEADS), draw(2, HEADS, HEAD_DIM, D_STATE, seed=7)
    expected, last = recurrence(tokens, state, group_size, dt_limit, parameters())
    conv_state = torch.zeros(2, CHANNELS, WIDTH - 1, dtype=torch.float64).mT  # as in the cache
    options = {"eps": 1e-5, "group_size": group_size, "dt_limit": dt_limit}
    for t in range(6):
        y = mamba2_step(tokens[:, t], conv_state, state, **parameters(), **options)
        torch.testing.assert_close(y, expected[:, t], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(conv_state, tokens[:, 3:, INNER : INNER + CHANNELS])
