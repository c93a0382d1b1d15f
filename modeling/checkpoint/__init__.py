"""Checkpoints on disk: safetensors in and out, one tensor at a time, with their history."""

from hybridize.modeling.checkpoint.header import Place
from hybridize.modeling.checkpoint.provenance import read_provenance
from hybridize.modeling.checkpoint.reader import CheckpointReader
from hybridize.modeling.checkpoint.writer import CheckpointWriter, TensorSpec, check_output

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "Place",
    "TensorSpec",
    "check_output",
    "read_provenance",
]
