"""Run transformers' own Granite-hybrid, Bamba, Nemotron-H and Mamba-2 models with these kernels.

Without mamba-ssm and causal-conv1d, transformers runs the scan and the convolution as plain torch
code. Its Mamba-2 mixers have different class names but the same code. `patch` replaces the
``forward`` of a model's mixers and norms. It changes nothing else in the model or in transformers.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from hybridize.errors import InputError
from hybridize.kernels.api import causal_conv1d, gated_rms_norm, mamba2_step, rms_norm, ssd_scan

_MIXERS = {"BambaMixer", "GraniteMoeHybridMambaLayer", "Mamba2Mixer", "NemotronHMamba2Mixer"}
# Nemotron-H's plain norm is not in this set, because it multiplies by its weight before it rounds.
# `rms_norm` and the norms below round first.
_NORMS = {"BambaRMSNorm", "GraniteMoeHybridRMSNorm", "Mamba2RMSNorm"}


def patch(model: nn.Module) -> int:
    """Run a transformers model's Mamba-2 mixers and norms with these kernels.

    `unpatch` restores the original code. Weights, caches, ``generate`` and gradients work as
    before. Packed sequences work too: pass ``seq_idx``, ``(batch, length)``.

    Args:
        model: transformers' own Granite-hybrid, Bamba, Nemotron-H or Mamba-2 model, or a part
            of one.

    Returns:
        The number of mixers that were patched.

    Raises:
        InputError: the model has no known Mamba-2 mixer, or one whose convolution is not followed
            by SiLU.
    """
    mixers = [module for module in model.modules() if type(module).__name__ in _MIXERS]
    if not mixers:
        raise InputError(
            f"{type(model).__name__}: no Mamba-2 mixer that can be patched; "
            f"known mixers: {', '.join(sorted(_MIXERS))}"
        )
    for mixer in mixers:
        if mixer.activation not in ("silu", "swish"):
            raise InputError(
                f"{type(model).__name__}: its convolution's activation is {mixer.activation}, "
                "not SiLU"
            )
    for module in model.modules():
        if type(module).__name__ in _NORMS:
            module.forward = partial(_norm_forward, module)
    for mixer in mixers:
        mixer.forward = partial(_mixer_forward, mixer)
    return len(mixers)


def unpatch(model: nn.Module) -> None:
    """Restore the original code of a patched model; a model that is not patched is unchanged."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, partial) and forward.func in (_norm_forward, _mixer_forward):
            del module.forward


def _norm_forward(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return rms_norm(hidden_states, norm.weight, norm.variance_epsilon)


def _mixer_forward(
    mixer: Any,
    hidden_states: torch.Tensor,
    cache: Any = None,
    attention_mask: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Replace the mixer's own ``forward``, from ``(batch, length, hidden)`` to the same shape."""
    del kwargs
    conv_state = state = None
    if cache is not None:
        conv_state = cache.get_conv_state(mixer.layer_idx, state_idx=0)
        state = cache.get_recurrent_state(mixer.layer_idx, state_idx=0)
    mask = None if attention_mask is None else attention_mask[:, :, None]
    projected = mixer.in_proj(_masked(hidden_states, mask))
    gate, conv_input, dt = projected.split(
        [mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], dim=-1
    )
    weight, bias = mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias
    if conv_state is not None:  # the cache has one input more than the convolution needs
        conv_state = conv_state[..., 1 - weight.shape[1] :].transpose(1, 2).clone()
    if cache is not None:
        cache.update_conv_state(
            conv_input.transpose(1, 2), mixer.layer_idx, conv_kernel_size=weight.shape[1]
        )
    norm = mixer.norm
    if conv_input.shape[1] == 1 and mask is None and conv_state is not None and state is not None:
        wide = state.to(torch.promote_types(state.dtype, torch.float32))
        y = mamba2_step(
            projected[:, 0],
            conv_state,
            wide,
            weight,
            bias,
            mixer.A_log,
            mixer.D,
            mixer.dt_bias,
            norm.weight,
            norm.variance_epsilon,
            group_size=norm.group_size,
        )[:, None]
        if wide is not state:
            state.copy_(wide)
    else:
        mixed, _ = causal_conv1d(conv_input, weight, bias, conv_state=conv_state, seq_idx=seq_idx)
        x, B, C = _split(mixer, _masked(mixed, mask))
        y, last = ssd_scan(
            x,
            dt,
            -torch.exp(mixer.A_log.float()),
            B,
            C,
            D=mixer.D,
            dt_bias=mixer.dt_bias,
            dt_limit=tuple(mixer.time_step_limit),
            initial_state=state,
            seq_idx=seq_idx,
        )
        if cache is not None:
            cache.update_recurrent_state(last, layer_idx=mixer.layer_idx)
        y = gated_rms_norm(
            y.flatten(2), gate, norm.weight, norm.variance_epsilon, group_size=norm.group_size
        )
    output: torch.Tensor = mixer.out_proj(y.to(hidden_states.dtype))
    return output


def _masked(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return values if mask is None else (values * mask).to(values.dtype)


def _split(mixer: Any, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split the convolution's output into x per head, and B and C per group."""
    bc_width = mixer.n_groups * mixer.ssm_state_size
    x, B, C = mixed.split([mixer.intermediate_size, bc_width, bc_width], dim=-1)
    groups = (mixer.n_groups, mixer.ssm_state_size)
    return (
        x.unflatten(-1, (mixer.num_heads, mixer.head_dim)),
        B.unflatten(-1, groups),
        C.unflatten(-1, groups),
    )
