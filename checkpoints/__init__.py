"""Checkpoints on disk: reading and writing safetensors, one tensor at a time, with provenance."""

from hybridize.checkpoints.header import TensorLocation, TensorSpec
from hybridize.checkpoints.output import check_output
from hybridize.checkpoints.provenance import read_provenance
from hybridize.checkpoints.reader import CheckpointReader
from hybridize.checkpoints.writer import CheckpointWriter

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "TensorLocation",
    "TensorSpec",
    "check_output",
    "read_provenance",
]
