"""Checkpoints on disk: reading and writing safetensors, one tensor at a time, with provenance.

- `hub`, `hub_repository`: from a path or a hub id to a directory, downloading what is needed.
- `weight_files`, `carried_files`: which files are read, and which go along to results.
- `reader`, `header`, `header_reader`, `config_only_reader`: config.json and tensors, as stored.
- `formats`: config.json and tensor names of each architecture; `config_check`, `quantization`.
- `tensors`: the same tensors under hybridize's parameter names.
- `load`, `blockwise`: a model in memory, whole or block by block.
- `streaming_writer`, `save`: writing a result from a stream of tensors, or from a model in memory.
- `writer`, `output`, `leftovers`: the output directory, which appears complete or not at all.
- `provenance`: ``hybridize.json``, the record of the commands that made a checkpoint.
"""

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
