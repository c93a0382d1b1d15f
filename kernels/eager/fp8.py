"""The FP8 linear layer with torch's FP8 matrix product, where the device has one."""

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
    """Implement `hybridize.kernels.fp8_linear`."""
    if activations == "group" or not has_fp8_product(x, weight, weight_scale):
        return reference.fp8_linear(
            x, weight, weight_scale, bias, activations=activations, input_scale=input_scale
        )
    values, scale = reference.fp8_quantize(x.flatten(0, -2), activations, scale=input_scale)
    return scaled_matmul(values, scale, weight, weight_scale, bias, x)


def has_fp8_product(x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> bool:
    """Return whether torch has an exact FP8 product for this device and these shapes."""
    if weight_scale.numel() > 1 and weight_scale.shape != (len(weight), 1):  # block scales
        return False
    if x.is_cpu:
        return x.dtype in (torch.float32, torch.bfloat16, torch.float16) and x.numel() > 0
    # Tensor cores need multiples of 16, and write bfloat16 when the scales are per row.
    aligned = weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0 and x.numel() > 0
    has_fp8 = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 9)
    return has_fp8 and aligned and x.dtype == torch.bfloat16


def scaled_matmul(
    values: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    like: torch.Tensor,
) -> torch.Tensor:
    """Multiply FP8 matrices with scales per tensor or per row.

    Args:
        values: ``(tokens, in_features)``, the quantized activations.
        scale: as `hybridize.kernels.fp8_quantize` returns it.
        weight, weight_scale, bias: see `hybridize.kernels.fp8_linear`.
        like: ``(..., in_features)``, the activations before quantization; the result takes its
            leading dimensions and dtype.
    """
    scale, weight_scale = scale.float(), weight_scale.float()
    if scale.numel() > 1 or weight_scale.numel() > 1:  # torch needs both per row, or neither
        scale = scale.reshape(-1, 1).expand(len(values), 1).contiguous()
        weight_scale = weight_scale.reshape(1, -1).expand(1, len(weight)).contiguous()
    # On the CPU, torch would round the bias together with the sum: add it in float32 afterwards.
    fused_bias = None if bias is None or like.is_cpu else bias.to(torch.bfloat16)
    result = torch._scaled_mm(
        values,
        weight.t(),
        scale_a=scale,
        scale_b=weight_scale,
        bias=fused_bias,
        out_dtype=torch.float32 if like.is_cpu else torch.bfloat16,
    )
    if bias is not None and fused_bias is None:
        result = result + bias
    return result.to(like.dtype).unflatten(0, like.shape[:-1])
