"""Checkpoints on disk: safetensors in and out, one tensor at a time, with their history."""

from hybridize.checkpoints.header import Place
from hybridize.checkpoints.provenance import read_provenance
from hybridize.checkpoints.reader import CheckpointReader
from hybridize.checkpoints.writer import CheckpointWriter, TensorSpec, check_output

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "Place",
    "TensorSpec",
    "check_output",
    "read_provenance",
]
