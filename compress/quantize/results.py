"""What a quantization did, for the command, for Python and for the record."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridize.compress.quantize.keep import KeptBlock


@dataclass(frozen=True)
class QuantizeResult:
    """What a quantization did, or would do.

    Attributes:
        source, output: directories.
        format: the on-disk architecture, which stays.
        scheme: how weights and activations are scaled.
        layout: the model's pattern.
        kept: blocks that stay as they were, with reasons.
        skipped: tensors of other blocks that the scheme cannot hold, with reasons.
        sensitivity: what each block costs alone, in nats per token, where it was measured.
        parameters, quantized: counts.
        bytes_before, bytes_after: sizes of the weights.
        ignored: what config.json tells others to leave alone.
        files: how many safetensors files; 0 for a dry run.
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
        """Return the result as JSON can hold it."""
        return asdict(self) | {"source": str(self.source), "output": str(self.output)}

    def metrics(self) -> dict[str, Any]:
        """Return what the provenance keeps of the result."""
        everything = asdict(self)
        names = ("scheme", "layout", "kept", "skipped", "quantized", "bytes_before", "bytes_after")
        metrics = {name: everything[name] for name in names}
        if self.sensitivity:
            metrics["sensitivity"] = {str(k): v for k, v in self.sensitivity.items()}
        return metrics
