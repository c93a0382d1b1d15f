"""`hybridize export --to gguf`: one file with the weights, the sizes and the tokenizer."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.files import sync
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.leftovers import partial_directory
from hybridize.checkpoints.streaming_writer import source_name
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.console import console
from hybridize.errors import HybridizeError, InputError
from hybridize.exporters.gguf.metadata import ARCHITECTURE, write_metadata
from hybridize.exporters.gguf.shapes import obstacles
from hybridize.exporters.gguf.tensors import Outgoing, tensor_plan
from hybridize.exporters.gguf.vocabulary import Vocabulary, read_vocabulary
from hybridize.extras import require_extra
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.devices import DTYPES

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class GgufResult:
    """What was exported.

    Attributes:
        output: the file.
        architecture: whose loader in llama.cpp reads it.
        dtype: of the matrices.
        tensors: how many there are.
        nbytes: size of their data.
        tokenizer: llama.cpp's kind of it, and its rule for splitting text.
        dry_run: whether nothing was written.
    """

    output: Path
    architecture: str
    dtype: str
    tensors: int
    nbytes: int
    tokenizer: tuple[str, str]
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return asdict(self) | {"output": str(self.output)}


def export_gguf(
    model: str | Path,
    output: str | Path,
    *,
    dtype: str = "auto",
    tokenizer: str = "auto",
    force: bool = False,
    dry_run: bool = False,
) -> GgufResult:
    """Write a checkpoint as a GGUF file for llama.cpp's Granite hybrid.

    One tensor is in memory at a time.

    Args:
        model: a directory or a hub id.
        output: the file to write.
        dtype: of the matrices: ``"auto"`` (as in the checkpoint), ``"float32"``, ``"bfloat16"`` or
            ``"float16"``. Everything else is float32, as llama.cpp wants it.
        tokenizer: ``"auto"``; ``"none"`` for a file that takes token ids alone; or llama.cpp's name
            for how a byte-level BPE splits text, where that is not recognized.
        force: replace an existing file.
        dry_run: check and plan only.

    Raises:
        InputError: llama.cpp has no place for the model or its tokenizer; nothing was written.
        HybridizeError: a package is missing, or writing failed; nothing was left behind.
    """
    output, source = Path(output), resolve(model)
    _check_output(output, force=force)
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: choose auto or one of {', '.join(DTYPES)}")
    require_extra("gguf", "gguf", "exporting to GGUF")
    with CheckpointReader(source) as reader:
        format_, config = read_config(reader)
        found = obstacles(config)
        if found:
            raise InputError(f"{source}: llama.cpp cannot hold it: {'; '.join(found)}")
        tensors = CheckpointTensors(reader, format_, config)
        stored = DTYPES.get(dtype) or tensors.dtype("model.embed_tokens.weight")
        stored = torch.float32 if stored == torch.float64 else stored
        vocabulary = read_vocabulary(source, tokenizer, config.vocab_size)
        plan = tensor_plan(config, tensors)
        if not dry_run:
            name = source_name(model)
            _write(output, plan, vocabulary, config, name=name, dtype=stored)
    return GgufResult(
        output=output,
        architecture=ARCHITECTURE,
        dtype=str(stored).removeprefix("torch."),
        tensors=len(plan),
        nbytes=sum(tensor.nbytes(stored) for tensor in plan),
        tokenizer=(vocabulary.model, vocabulary.pre),
        dry_run=dry_run,
    )


def _check_output(output: Path, *, force: bool) -> None:
    if output.is_dir() or output.name in ("", ".."):
        raise InputError(f"{output}: is a directory; --output names a file for GGUF")
    if os.path.lexists(output) and not force:
        raise InputError(f"{output}: exists already; --force replaces it")
    if not output.parent.is_dir():
        raise InputError(f"{output}: its directory does not exist; make it first")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise InputError(f"{output}: no permission to write in {output.parent}")


def _write(
    output: Path,
    plan: list[Outgoing],
    vocabulary: Vocabulary,
    config: HybridConfig,
    *,
    name: str,
    dtype: torch.dtype,
) -> None:
    try:
        with partial_directory(output) as folder:
            _fill(folder / output.name, plan, vocabulary, config, name, dtype)
            (folder / output.name).replace(output)
            sync(output.parent)
    except OSError as error:
        raise HybridizeError(f"{output}: {error.strerror or error}; nothing was left") from error


def _fill(
    path: Path,
    plan: list[Outgoing],
    vocabulary: Vocabulary,
    config: HybridConfig,
    name: str,
    dtype: torch.dtype,
) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, ARCHITECTURE)
    try:
        write_metadata(writer, config, name, dtype)
        vocabulary.write(writer)
        for tensor in plan:
            kind, item = _kind(tensor, dtype)
            writer.add_tensor_info(tensor.name, tensor.shape, item, tensor.nbytes(dtype), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total = sum(tensor.nbytes(dtype) for tensor in plan)
        with console.progress("writing GGUF", total, "bytes") as progress:
            for tensor in plan:
                writer.write_tensor_data(_data(tensor, dtype))
                progress.advance(tensor.nbytes(dtype))
    finally:
        writer.close()
    sync(path)


def _kind(tensor: Outgoing, dtype: torch.dtype) -> tuple[Any, "np.dtype[Any]"]:
    """Return how a tensor's numbers are stored, in GGUF's words and in numpy's."""
    import numpy as np
    from gguf import GGMLQuantizationType

    kinds: dict[torch.dtype, tuple[Any, np.dtype[Any]]] = {
        torch.float32: (GGMLQuantizationType.F32, np.dtype(np.float32)),
        torch.float16: (GGMLQuantizationType.F16, np.dtype(np.float16)),
        torch.bfloat16: (GGMLQuantizationType.BF16, np.dtype(np.int16)),  # numpy has no such type
    }
    return kinds[dtype if tensor.matrix else torch.float32]


def _data(tensor: Outgoing, dtype: torch.dtype) -> "np.ndarray[Any, Any]":
    value = tensor.read().to(dtype if tensor.matrix else torch.float32).contiguous()
    assert value.shape == tensor.shape, tensor.name
    if value.dtype == torch.float16 and not value.isfinite().all():
        raise InputError(
            f"--dtype float16: tensor {tensor.name!r} has values beyond 65504; choose bfloat16"
        )
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
