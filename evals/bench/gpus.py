"""The peak rates and the memory of GPUs, from their makers' data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """One GPU.

    Attributes:
        name: the maker's name for it.
        flops: dense bfloat16 matrix operations with float32 accumulation, per second.
        bandwidth: memory bandwidth in bytes per second.
        memory: in bytes.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "a100": GPU("NVIDIA A100 SXM 80 GB", 312e12, 2.039e12, 80e9),
    "h100": GPU("NVIDIA H100 SXM 80 GB", 989e12, 3.35e12, 80e9),
    "h200": GPU("NVIDIA H200 SXM 141 GB", 989e12, 4.8e12, 141e9),
    "b200": GPU("NVIDIA B200 SXM 180 GB", 2250e12, 7.7e12, 180e9),
    "rtx4090": GPU("NVIDIA GeForce RTX 4090", 165e12, 1.008e12, 24e9),
    "rtx5090": GPU("NVIDIA GeForce RTX 5090", 209.5e12, 1.792e12, 32e9),
}
"""Each GPU by its name as an option, ``gpu``."""
