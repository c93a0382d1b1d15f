"""`hybridize export --to gguf`: write weights, configuration and tokenizer to one file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.files import sync
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.header_reader import open_headers
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.leftovers import partial_directory
from hybridize.checkpoints.provenance import source_name
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.console import console
from hybridize.errors import HybridizeError, InputError
from hybridize.exporters.config import ExportConfig
from hybridize.exporters.gguf.metadata import ARCHITECTURE, write_metadata
from hybridize.exporters.gguf.supported_models import unsupported_features
from hybridize.exporters.gguf.tensors import GgufTensor, tensor_plan
from hybridize.exporters.gguf.vocabulary import Vocabulary, read_vocabulary
from hybridize.extras import require_extra
from hybridize.interrupts import uninterrupted
from hybridize.modeling.devices import DTYPES
from hybridize.modeling.model_spec import ModelSpec
from hybridize.output_files import check_output_file, follow_link

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class GgufResult:
    """The result of an export to GGUF.

    Attributes:
        output: the file.
        architecture: llama.cpp's name for the architecture.
        dtype: the dtype of the matrices.
        tensors: the number of tensors.
        nbytes: the size of their data in bytes.
        tokenizer: llama.cpp's names for the tokenizer model and the pre-tokenizer.
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
        """Return the result as JSON values."""
        return asdict(self) | {"output": str(self.output)}


def export_gguf(model: str | Path, output: str | Path, config: ExportConfig) -> GgufResult:
    """Write a checkpoint as a GGUF file for llama.cpp's Granite hybrid.

    One tensor is in memory at a time.

    Args:
        model: a directory or a hub id.
        output: the file to write.
        config: the options. ``dtype`` applies to matrices; llama.cpp needs all other tensors in
            float32.

    Raises:
        InputError: llama.cpp does not support the model or its tokenizer; nothing was written.
        HybridizeError: a package is missing, or writing failed; nothing was left behind.
    """
    output, source = Path(output), resolve(model, weights=not config.dry_run)
    check_output_file(output, force=config.force)
    require_extra("gguf", "gguf", "exporting to GGUF")
    with open_headers(model) if config.dry_run else CheckpointReader(source) as reader:
        format_, spec = read_config(reader)
        unsupported = unsupported_features(spec)
        if unsupported:
            raise InputError(f"{source}: llama.cpp does not support it: {'; '.join(unsupported)}")
        tensors = CheckpointTensors(reader, format_, spec)
        source_dtype = tensors.dtype("model.embed_tokens.weight")
        name = source_dtype if config.dtype == "auto" else config.dtype
        dtype = DTYPES.get(name, torch.float32)  # GGUF has no float64
        vocabulary = read_vocabulary(source, config.tokenizer, spec.vocab_size)
        plan = tensor_plan(spec, tensors)
        if not config.dry_run:
            with _partial_file(output) as path:
                _write(path, plan, vocabulary, spec, source_name(source), dtype)
    return GgufResult(
        output=output,
        architecture=ARCHITECTURE,
        dtype=str(dtype).removeprefix("torch."),
        tensors=len(plan),
        nbytes=sum(tensor.nbytes(dtype) for tensor in plan),
        tokenizer=(vocabulary.model, vocabulary.pre),
        dry_run=config.dry_run,
    )


@contextmanager
def _partial_file(output: Path) -> Iterator[Path]:
    """Yield a temporary path, and move the file that was written there to the output."""
    try:
        with partial_directory(output) as folder:
            yield folder / output.name
            target = follow_link(output)
            with uninterrupted(f"{output} is complete"):
                (folder / output.name).replace(target)
                sync(target.parent)
    except OSError as error:
        raise HybridizeError(f"{output}: {error.strerror or error}; nothing was left") from error


def _write(
    path: Path,
    plan: list[GgufTensor],
    vocabulary: Vocabulary,
    spec: ModelSpec,
    name: str,
    dtype: torch.dtype,
) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, ARCHITECTURE)
    try:
        write_metadata(writer, spec, name, dtype)
        vocabulary.write(writer)
        for tensor in plan:
            gguf_type, item = _stored_types(tensor, dtype)
            writer.add_tensor_info(tensor.name, tensor.shape, item, tensor.nbytes(dtype), gguf_type)
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


def _stored_types(tensor: GgufTensor, dtype: torch.dtype) -> tuple[Any, "np.dtype[Any]"]:
    """Return the types in which a tensor is stored: GGUF's and numpy's."""
    import numpy as np
    from gguf import GGMLQuantizationType

    types: dict[torch.dtype, tuple[Any, np.dtype[Any]]] = {
        torch.float32: (GGMLQuantizationType.F32, np.dtype(np.float32)),
        torch.float16: (GGMLQuantizationType.F16, np.dtype(np.float16)),
        torch.bfloat16: (GGMLQuantizationType.BF16, np.dtype(np.int16)),  # numpy has no bfloat16
    }
    return types[dtype if tensor.matrix else torch.float32]


def _data(tensor: GgufTensor, dtype: torch.dtype) -> "np.ndarray[Any, Any]":
    value = tensor.read().to(dtype if tensor.matrix else torch.float32).contiguous()
    assert value.shape == tensor.shape, tensor.name
    if value.dtype == torch.float16 and not value.isfinite().all():
        raise InputError(
            f"`dtype=float16`: tensor {tensor.name!r} has values beyond 65504; choose bfloat16"
        )
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
