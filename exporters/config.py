"""The options of `hybridize.export`."""

from dataclasses import dataclass

from hybridize.errors import InputError
from hybridize.option_types import Choice, Text
from hybridize.options import (
    Config,
    dry_run_option,
    dtype_option,
    force_option,
    option,
    seed_option,
)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """The target format, and how weights and tokenizer are written."""

    to: str = option(
        Choice("onnx", "gguf"),
        "onnx",
        help="Target format. onnx: a directory with two graphs. gguf: a file for llama.cpp.",
    )
    dtype: str = dtype_option(
        "Dtype of the matrices in a GGUF file; auto keeps the checkpoint's. ONNX is float32."
    )
    tokenizer: str = option(
        Text("auto|none|NAME"),
        "auto",
        help="Tokenizer of a GGUF file. auto: the checkpoint's. none: no tokenizer, token ids "
        "only. NAME: the checkpoint's, with llama.cpp's pre-tokenizer NAME, for a tokenizer that "
        "auto does not recognize.",
    )
    seed: int = seed_option()
    force: bool = force_option()
    dry_run: bool = dry_run_option()

    def check_options(self) -> None:
        """Reject options of GGUF files for ONNX."""
        if self.to == "onnx":
            if self.dtype not in ("auto", "float32"):
                raise InputError(f"`dtype={self.dtype}`: ONNX graphs are written in float32")
            if self.tokenizer != "auto":
                raise InputError(
                    f"`tokenizer={self.tokenizer}` needs `to=gguf`: ONNX graphs take token ids"
                )
