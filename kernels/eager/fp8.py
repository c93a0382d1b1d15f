"""The FP8 linear layer through torch's own FP8 matrix product."""

import torch

from hybridize.kernels.reference import fp8 as reference


def fp8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activations: str,
    input_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `hybridize.kernels.fp8_linear`."""
    if activations == "group" or not multiplies_fp8(x, weight, weight_scale):
        return reference.fp8_linear(
            x, weight, weight_scale, bias, activations=activations, input_scale=input_scale
        )
    values, scale = reference.fp8_quantize(x.flatten(0, -2), activations, scale=input_scale)
    return scaled_product(values, scale, weight, weight_scale, bias, x)


def multiplies_fp8(x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> bool:
    """Say whether this device and these shapes have an FP8 product that loses nothing."""
    if weight_scale.numel() > 1 and weight_scale.shape != (len(weight), 1):  # by blocks
        return False
    if x.is_cpu:
        return x.dtype in (torch.float32, torch.bfloat16, torch.float16) and x.numel() > 0
    # Tensor cores take multiples of 16; per row, what they write is bfloat16.
    whole = weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0 and x.numel() > 0
    recent = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 9)
    return recent and whole and x.dtype == torch.bfloat16


def scaled_product(
    values: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    like: torch.Tensor,
) -> torch.Tensor:
    """Multiply FP8 numbers that have scales per tensor or per row.

    Args:
        values, scale: ``(rows, columns)``, and as `hybridize.kernels.fp8_quantize` returns it.
        weight, weight_scale, bias: see `hybridize.kernels.fp8_linear`.
        like: ``(..., columns)``, what ``values`` were: gives the result its shape and dtype.
    """
    scale, weight_scale = scale.float(), weight_scale.float()
    if scale.numel() > 1 or weight_scale.numel() > 1:  # both per row, or neither
        scale = scale.reshape(-1, 1).expand(len(values), 1).contiguous()
        weight_scale = weight_scale.reshape(1, -1).expand(1, len(weight)).contiguous()
    # On the processor a bias would be rounded with the sum: it is added to what is float32 still.
    within = None if bias is None or like.is_cpu else bias.to(torch.bfloat16)
    result = torch._scaled_mm(
        values,
        weight.t(),
        scale_a=scale,
        scale_b=weight_scale,
        bias=within,
        out_dtype=torch.float32 if like.is_cpu else torch.bfloat16,
    )
    if bias is not None and within is None:
        result = result + bias
    return result.to(like.dtype).unflatten(0, like.shape[:-1])
