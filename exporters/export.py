"""`hybridize export`: a checkpoint in another software's format; one function per target."""

from pathlib import Path
from typing import TYPE_CHECKING

from hybridize.errors import InputError

if TYPE_CHECKING:
    from hybridize.exporters.gguf.export import GgufResult
    from hybridize.exporters.onnx import OnnxResult

TARGETS = ("onnx", "gguf")


def export(
    model: str | Path,
    output: str | Path,
    *,
    to: str = "onnx",
    dtype: str = "auto",
    tokenizer: str = "auto",
    force: bool = False,
    dry_run: bool = False,
    seed: int = 0,
) -> "OnnxResult | GgufResult":
    """Export a checkpoint to other people's software.

    Args:
        model: a directory or a hub id.
        output: what to write: a directory for ``"onnx"``, a file for ``"gguf"``.
        to: ``"onnx"`` (two graphs, see `export_onnx`) or ``"gguf"`` (a file for llama.cpp, see
            `export_gguf`).
        dtype, tokenizer: of the GGUF file; graphs are float32, and the tokenizer lies beside them.
        force: replace an existing output.
        dry_run: check and plan only.
        seed: of the random prompt that graphs are checked with.

    Raises:
        InputError: the checkpoint cannot be exported; nothing was written.
        HybridizeError: a package is missing, or the result is wrong; nothing was written.
    """
    if to == "gguf":
        from hybridize.exporters.gguf.export import export_gguf

        return export_gguf(
            model, output, dtype=dtype, tokenizer=tokenizer, force=force, dry_run=dry_run
        )
    if to != "onnx":
        raise InputError(f"--to {to}: choose {' or '.join(TARGETS)}")
    if dtype not in ("auto", "float32"):
        raise InputError(f"--dtype {dtype}: ONNX graphs are written in float32")
    if tokenizer != "auto":
        raise InputError(f"--tokenizer {tokenizer}: is for --to gguf; graphs have no tokenizer")
    from hybridize.exporters.onnx import export_onnx

    return export_onnx(model, output, force=force, dry_run=dry_run, seed=seed)
