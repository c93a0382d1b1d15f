"""`hybridize export`: write a checkpoint in the format of another program."""

from pathlib import Path
from typing import TYPE_CHECKING

from hybridize.exporters.config import ExportConfig
from hybridize.options import takes_options

if TYPE_CHECKING:
    from hybridize.exporters.gguf.export import GgufResult
    from hybridize.exporters.onnx.export import OnnxResult


@takes_options(ExportConfig)
def export(
    model: str | Path, output: str | Path, config: ExportConfig
) -> "OnnxResult | GgufResult":
    """Export a checkpoint to ONNX (see `export_onnx`) or GGUF (see `export_gguf`).

    Args:
        model: a directory or a hub id.
        output: the directory to write for ONNX, or the file to write for GGUF.
        config: the options; you can also give each option as a keyword.

    Raises:
        InputError: the checkpoint cannot be exported; nothing was written.
        HybridizeError: a package is missing, or the result is wrong; nothing was written.
    """
    if config.to == "gguf":
        from hybridize.exporters.gguf.export import export_gguf

        return export_gguf(model, output, config)
    from hybridize.exporters.onnx.export import export_onnx

    return export_onnx(model, output, config)
