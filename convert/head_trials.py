"""The choice of each head's lag, memory and scale, from features that all trials share.

A trial gives each head three values:

- the lag: how many tokens its convolution looks back. Many attention heads look one, two or three
  tokens back. Without RoPE, a Mamba-2 block can do this only with its convolution.
- the memory: after how many tokens the decay has reduced a token's weight to 1/e.
- the scale: how strongly its scores depend on content.

For each trial, a linear map is fitted from the head's features to the output of the attention head.
The values with the smallest error are chosen. One run of the convolution serves all memories of a
lag, and one run of the scan computes all of them: it treats each memory as a further head, which
shares B and C with the others.
"""

from dataclasses import dataclass

import torch

from hybridize.conversion.moments import Moments
from hybridize.kernels import causal_conv1d, gated_rms_norm, ssd_scan
from hybridize.modeling.layers.mamba2 import Mamba2

_MEMORIES = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0)  # tokens
_SCALES = (0.5, 1.0, 2.0, 4.0)

_PENALTY = 1e-3
"""Of the ridge regressions, in units of the features' mean square."""


@dataclass(frozen=True)
class HeadTarget:
    """What the heads of a block should compute, for a batch of text.

    Attributes:
        projected: ``(batch, length, sum(in_proj_splits()))``, the new block's projected input.
        heads: ``(heads, batch × length, head_dim)``, the outputs of the attention heads.
        seq_idx: ``(batch, length)``, the packed sequences; None if every row is one sequence.
    """

    projected: torch.Tensor
    heads: torch.Tensor
    seq_idx: torch.Tensor | None


class HeadTrials:
    """Chooses the lag and the memory of each head, and the scale of each group.

    Args:
        mixer: the new block, with its first values. `choose` changes its convolution and decay.
        targets: some text; less than all text is enough for the choice.
        importance: ``(heads, head_dim, head_dim)`` in float64. The error of a head is measured
            after the attention's output projection W: its importance is transpose(W) @ W.
    """

    def __init__(self, mixer: Mamba2, targets: list[HeadTarget], importance: torch.Tensor) -> None:
        self._mixer, self._targets, self._importance = mixer, targets, importance
        sizes = self._sizes = mixer.sizes
        self._heads = len(importance)
        self._copies = sizes.num_heads // self._heads
        device, dtype = mixer.A_log.device, mixer.A_log.dtype
        self._dt = torch.nn.functional.softplus(mixer.dt_bias)
        # Each channel's filter for x has one nonzero tap. Choosing another lag moves this tap.
        self._gain = mixer.conv1d.weight[: sizes.d_inner, 0].sum(-1, keepdim=True)
        self._memories = torch.tensor(_MEMORIES, device=device, dtype=dtype)
        self._scales = torch.tensor(_SCALES, device=device, dtype=dtype)
        shape = (self._heads, self._copies)
        self._memory = torch.ones(shape, device=device, dtype=dtype)
        self._scale = torch.ones(sizes.n_groups, device=device, dtype=dtype)
        self._lag = torch.zeros(shape, dtype=torch.long, device=device)
        self._score_lag = self._lag.new_zeros(sizes.n_groups)

    def choose(self) -> None:
        """Choose all values, and write them into the block's convolution and decay."""
        for copy in range(self._copies):  # the second copy of a head adds to the first one's output
            self._choose_lag_and_memory(copy)
            if copy == 0:
                self._choose_scales()
        self._mixer.conv1d.weight.copy_(self._filters()[:, None])
        self._mixer.A_log.copy_(-torch.log(self._memory.flatten() * self._dt))

    def _choose_lag_and_memory(self, copy: int) -> None:
        """Choose for one copy of each head. The copies after it get the same values."""
        groups, width = self._sizes.n_groups, self._sizes.conv_kernel
        trials = []
        for lag in range(width):
            self._lag[:, copy:] = lag
            if copy == 0:
                self._score_lag[:] = lag
            trials.append(self._errors(copy))
        best, memory_of = torch.stack(trials).min(1)  # (lag, head)
        lag_of = best.argmin(0)
        if copy == 0:  # the heads of a group share B, which has the same lag as x
            self._score_lag = best.unflatten(1, (groups, -1)).sum(-1).argmin(0)
            lag_of = self._score_lag.repeat_interleave(self._heads // groups)
        heads = torch.arange(self._heads, device=lag_of.device)
        self._lag[:, copy:] = lag_of[:, None]
        self._memory[:, copy:] = self._memories[memory_of[lag_of, heads]][:, None]

    def _choose_scales(self) -> None:
        trials = []
        for scale in self._scales:
            self._scale[:] = scale
            trials.append(
                self._errors(None).sum(0).unflatten(0, (self._sizes.n_groups, -1)).sum(-1)
            )
        self._scale = self._scales[torch.stack(trials).argmin(0)]

    def _errors(self, copy: int | None) -> torch.Tensor:
        """Return each head's error with the best linear map from its features.

        Args:
            copy: the copy of each head that gets all memories, one after the other. The map may
                use the copies before it too. None: the first copy alone, with its chosen memory.

        Returns:
            ``(memories, heads)``; one memory if ``copy`` is None.
        """
        memories = self._memory[:, :, None]  # (heads, copies, trials)
        if copy is not None:
            memories = memories.repeat(1, 1, len(_MEMORIES))
            memories[:, copy:] = self._memories
        filters, used = self._filters(), slice(0, 1 if copy is None else copy + 1)
        moments = Moments(products=self._mixer.A_log.dtype)
        for target in self._targets:
            features = self._features(target, filters, memories)[:, :, used]
            # The features of a head's copies are joined: (trials, heads, tokens, used × head_dim).
            features = features.permute(0, 1, 3, 2, 4).flatten(-2)
            moments.add(features, target.heads)
        error = moments.error(moments.solve(_PENALTY))
        return (error * self._importance).sum((-2, -1))

    def _features(
        self, target: HeadTarget, filters: torch.Tensor, memories: torch.Tensor
    ) -> torch.Tensor:
        """Return the inputs of the output projection for all memories.

        Args:
            target: some text.
            filters: ``(channels, width)``, of the convolution.
            memories: ``(heads, copies, trials)``, in tokens.

        Returns:
            ``(trials, heads, copies, tokens, head_dim)``.
        """
        sizes, mixer, trials = self._sizes, self._mixer, memories.shape[-1]
        gate, conv_input, dt = target.projected.split(
            (sizes.d_inner, sizes.conv_channels, sizes.num_heads), dim=-1
        )
        mixed, _ = causal_conv1d(conv_input, filters, mixer.conv1d.bias, seq_idx=target.seq_idx)
        x, B, C = mixer.split(mixed)
        y, _ = ssd_scan(
            x.repeat_interleave(trials, 2),
            dt.repeat_interleave(trials, 2),
            -1 / (memories.flatten(0, 1) * self._dt[:, None]).flatten(),
            B,
            C,
            D=mixer.D.repeat_interleave(trials),
            dt_bias=mixer.dt_bias.repeat_interleave(trials),
            dt_limit=sizes.dt_limit,
            seq_idx=target.seq_idx,
        )
        y = y.unflatten(2, (sizes.num_heads, trials)).movedim(3, 0).flatten(3)
        norm = mixer.norm
        y = gated_rms_norm(y, gate.expand_as(y), norm.weight, norm.eps, group_size=norm.group_size)
        return y.flatten(1, 2).unflatten(-1, (self._heads, self._copies, -1)).movedim(1, 3)

    def _filters(self) -> torch.Tensor:
        """Return the filters of the convolution for the current values, ``(channels, width)``."""
        sizes = self._sizes
        filters = torch.zeros_like(self._mixer.conv1d.weight[:, 0])
        width = sizes.n_groups * sizes.d_state
        x, B, C = filters.split((sizes.d_inner, width, width))
        newest = sizes.conv_kernel - 1
        lag = self._lag.flatten().repeat_interleave(sizes.head_dim)
        x.scatter_(1, (newest - lag)[:, None], self._gain)
        lag = self._score_lag.repeat_interleave(sizes.d_state)
        scale = self._scale.repeat_interleave(sizes.d_state)
        B.scatter_(1, (newest - lag)[:, None], scale[:, None])
        C[:, newest] = scale
        return filters
