"""The result of `hybridize.quantize`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridize.compress.quantize.kept_blocks import KeptBlock


@dataclass(frozen=True)
class QuantizeResult:
    """The result of a quantization, or its plan if nothing was written.

    Attributes:
        source, output: directories.
        format: the on-disk format, which does not change.
        scheme: the quantization scheme.
        layout: one letter per block.
        kept: the blocks that are not quantized, with reasons.
        skipped: by name on disk, why the scheme cannot store a weight. Weights of kept blocks are
            not listed.
        sensitivity: by block, the KL divergence in nats per token when this block alone is
            quantized; empty if it was not measured.
        parameters: the number of parameters of the model.
        quantized: the number of parameters in FP8.
        bytes_before, bytes_after: sizes of the weights.
        ignored: the patterns of unquantized modules in config.json.
        files: number of safetensors files; 0 for a dry run.
        dry_run: whether nothing was written.
    """

    source: Path
    output: Path
    format: str
    scheme: str
    layout: str
    kept: tuple[KeptBlock, ...]
    skipped: dict[str, str]
    sensitivity: dict[int, float]
    parameters: int
    quantized: int
    bytes_before: int
    bytes_after: int
    ignored: tuple[str, ...]
    files: int
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self) | {"source": str(self.source), "output": str(self.output)}

    def metrics(self) -> dict[str, Any]:
        """Return the figures for the provenance record."""
        everything = asdict(self)
        names = ("scheme", "layout", "kept", "skipped", "quantized", "bytes_before", "bytes_after")
        metrics = {name: everything[name] for name in names}
        if self.sensitivity:
            metrics["sensitivity"] = {str(k): v for k, v in self.sensitivity.items()}
        return metrics
