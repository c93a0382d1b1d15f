"""`hybridize export --to onnx`: write the graphs of a checkpoint and check them."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints.carried_files import copied_files
from hybridize.checkpoints.files import CONFIG
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.leftovers import partial_directory
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.output import move_into_place
from hybridize.checkpoints.writer import check_output
from hybridize.console import console
from hybridize.exporters.config import ExportConfig
from hybridize.exporters.onnx.check import check
from hybridize.exporters.onnx.graph_files import (
    WEIGHTS,
    save_with_shared_weights,
    trace_decode,
    trace_prefill,
)
from hybridize.exporters.onnx.graphs import StateSpec, require_exportable, state_specs
from hybridize.extras import require_extra
from hybridize.modeling.model import HybridForCausalLM


@dataclass(frozen=True)
class OnnxResult:
    """The result of an export to ONNX.

    Attributes:
        output: the directory.
        files: the sizes of its files in bytes, by name.
        states: the states that the graphs take and return.
        difference: largest difference of a logit between torch and onnxruntime, see `check`; None
            for a dry run.
        dry_run: whether nothing was written.
    """

    output: Path
    files: dict[str, int]
    states: tuple[StateSpec, ...]
    difference: float | None
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self) | {"output": str(self.output)}


def export_onnx(model: str | Path, output: str | Path, config: ExportConfig) -> OnnxResult:
    """Export a checkpoint as a graph for prompts and a graph for single tokens, in float32.

    Both graphs take any batch size, and the prompt may have any length. The sequences of a batch
    have the same length. The weights are in one file beside the graphs.

    Args:
        model: a directory or a hub id.
        output: the directory to write.
        config: the options.

    Raises:
        InputError: the checkpoint cannot be exported; nothing was written.
        HybridizeError: a package is missing, or the logits of the graphs differ from torch's;
            nothing was written.
    """
    output, source = Path(output), resolve(model)
    check_output(output, source, force=config.force)
    if not config.dry_run:
        require_extra("onnx", ("onnx", "onnxscript", "onnxruntime"), "exporting to ONNX")
    hybrid = load_model(source, dtype=torch.float32)
    require_exportable(hybrid.config, str(source))
    specs = tuple(state_specs(hybrid.config))
    if config.dry_run:
        size = sum(parameter.nbytes for parameter in hybrid.parameters())
        return OnnxResult(output, {WEIGHTS: size}, specs, None, True)
    with partial_directory(output) as partial:
        with console.progress("exporting to ONNX", 4, "steps") as progress:
            prefill = trace_prefill(hybrid, specs)
            progress.advance()
            decode = trace_decode(hybrid, specs)
            progress.advance()
            save_with_shared_weights(prefill, decode, partial)
            progress.advance()
            difference = check(hybrid, partial, config.seed)
            progress.advance()
        write_other_files(hybrid, specs, source, partial)
        files = {
            path.relative_to(partial).as_posix(): path.stat().st_size
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        move_into_place(partial, output, force=config.force)
    return OnnxResult(output, files, specs, difference, False)


def write_other_files(
    hybrid: HybridForCausalLM, specs: tuple[StateSpec, ...], source: Path, folder: Path
) -> None:
    """Copy the files that belong to the model, and describe the states in onnx.json."""
    for path in filter(Path.is_file, (source / CONFIG, *copied_files(source))):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    generation = hybrid.generation_config  # of a chat model, it has all tokens that end an answer
    eos = None if generation is None else generation.eos_token_id
    described = {
        "layout": hybrid.config.layout,
        "vocab_size": hybrid.config.vocab_size,
        "bos_token_id": hybrid.config.bos_token_id,
        "eos_token_id": hybrid.config.eos_token_id if eos is None else eos,
        "states": [{"name": spec.name, "shape": list(spec.shape)} for spec in specs],
    }
    (folder / "onnx.json").write_text(json.dumps(described, indent=2) + "\n", "utf-8")
