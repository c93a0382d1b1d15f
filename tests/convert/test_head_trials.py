"""The choice of lags, memories and scales, compared with a search written as plain recurrences."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hybridize.conversion.head_trials import HeadTarget, HeadTrials
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.sizes import MambaSizes
from hybridize.modeling.model_spec import ModelSpec

MEMORIES = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0)
HEADS, HEAD_DIM, STATE, LENGTH = 4, 4, 3, 40


def make_mixer(groups, generator):
    sizes = MambaSizes(HEADS, HEAD_DIM, n_groups=groups, d_state=STATE, proj_bias=True)
    config = HybridConfig.from_spec(ModelSpec(vocab_size=8, hidden_size=6, blocks=(sizes,)))
    mixer = Mamba2(config, sizes, 0).requires_grad_(False).double()
    for parameter in mixer.parameters():
        parameter.normal_(generator=generator)
    mixer.dt_bias.fill_(math.log(math.expm1(0.1)))
    mixer.in_proj.weight[-HEADS:] = 0
    mixer.in_proj.bias[-HEADS:] = 0
    mixer.conv1d.weight.zero_()
    mixer.conv1d.weight[:, 0, -1] = 1.0
    mixer.D.zero_()
    return mixer


def head_features(mixer, projected, seq_idx, lag, memory):
    """The mixer's features with one lag and one memory for all heads, token by token."""
    sizes = mixer.sizes
    gate, mixed, _ = projected.split((sizes.d_inner, sizes.conv_channels, HEADS), -1)
    rows = []
    for row in range(len(projected)):
        states = torch.zeros(HEADS, HEAD_DIM, STATE).double()
        tokens = []
        for t in range(LENGTH):
            if t and seq_idx[row, t] != seq_idx[row, t - 1]:
                states = torch.zeros_like(states)
            past = t - lag
            visible = past >= 0 and seq_idx[row, past] == seq_idx[row, t]
            delayed = mixed[row, past] if visible else torch.zeros_like(mixed[row, t])
            bias, bc = mixer.conv1d.bias, sizes.n_groups * STATE
            x = F.silu(delayed[: sizes.d_inner] + bias[: sizes.d_inner]).view(HEADS, HEAD_DIM)
            b_slice = slice(sizes.d_inner, sizes.d_inner + bc)
            B = F.silu(delayed[b_slice] + bias[b_slice]).view(sizes.n_groups, STATE)
            C = F.silu(mixed[row, t, -bc:] + bias[-bc:]).view(sizes.n_groups, STATE)
            heads = []
            for h in range(HEADS):
                g = h * sizes.n_groups // HEADS
                states[h] = math.exp(-1 / memory) * states[h] + 0.1 * torch.outer(x[h], B[g])
                heads.append(states[h] @ C[g])
            y = torch.cat(heads) * F.silu(gate[row, t])
            y = y.view(sizes.n_groups, -1)
            y = y / (y.square().mean(-1, keepdim=True) + mixer.norm.eps).sqrt()
            tokens.append(y.flatten() * mixer.norm.weight)
        rows.append(torch.stack(tokens))
    return torch.cat(rows).unflatten(-1, (HEADS, HEAD_DIM))


def ridge_error(x, y, importance):
    a = F.pad(x, (0, 1), value=1.0)
    penalty = 1e-3 * x.square().sum(0).mean()
    ridge = torch.diag(F.pad(penalty.expand(x.shape[1]), (0, 1)))
    left = y - a @ torch.linalg.solve(a.T @ a + ridge, a.T @ y)
    return float(((left.T @ left) * importance).sum())


@pytest.mark.parametrize("groups", [HEADS, 2])
def test_heads_get_the_lag_and_memory_with_the_smallest_error(groups):
    generator = torch.Generator().manual_seed(groups)
    mixer = make_mixer(groups, generator)
    x = torch.randn(2, LENGTH, 6, generator=generator, dtype=torch.float64)
    seq_idx = (torch.arange(LENGTH) > 13).int().expand(2, -1)
    projected = mixer.in_proj(x)
    # The attention heads do what a Mamba-2 head can do, with noise.
    wanted = [(0, 4.0), (0, 32.0), (2, 1.0), (2, 8.0)]
    heads = torch.stack(
        [head_features(mixer, projected, seq_idx, *wanted[h])[:, h] for h in range(HEADS)]
    )
    heads = heads + 0.05 * torch.randn(heads.shape, generator=generator, dtype=torch.float64)
    root = torch.randn(HEADS, HEAD_DIM, HEAD_DIM, generator=generator, dtype=torch.float64)
    importance = root.mT @ root

    trials = list(itertools.product(range(4), MEMORIES))
    errors = torch.tensor(
        [
            [ridge_error(features[:, h], heads[h], importance[h]) for h in range(HEADS)]
            for features in (head_features(mixer, projected, seq_idx, *trial) for trial in trials)
        ]
    ).unflatten(0, (4, -1))
    best = errors.amin(1)  # (lag, head)
    lag_of = best.unflatten(1, (groups, -1)).sum(-1).argmin(0).repeat_interleave(HEADS // groups)
    memory_of = [MEMORIES[int(errors[lag_of[h], :, h].argmin())] for h in range(HEADS)]
    assert [(int(lag), memory) for lag, memory in zip(lag_of, memory_of, strict=True)] == wanted

    HeadTrials(mixer, [HeadTarget(projected, heads, seq_idx)], importance).choose()
    taps = mixer.conv1d.weight[: mixer.sizes.d_inner, 0].view(HEADS, HEAD_DIM, 4).argmax(-1)
    assert [3 - int(tap) for tap in taps[:, 0]] == [lag for lag, _ in wanted]
    memories = 1 / (mixer.A_log.exp() * 0.1)
    torch.testing.assert_close(memories, torch.tensor([m for _, m in wanted]).double())
