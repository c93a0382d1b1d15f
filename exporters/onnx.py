"""`hybridize export --to onnx`: write both graphs, and check them with onnxruntime."""

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hybridize.checkpoints.files import put_in_place
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.leftovers import partial_directory
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.writer import check_output
from hybridize.errors import HybridizeError
from hybridize.exporters.graphs import (
    Graph,
    StateSpec,
    require_exportable,
    state_specs,
)
from hybridize.extras import require_extra
from hybridize.modeling.model import HybridForCausalLM

PREFILL, DECODE, WEIGHTS = "prefill.onnx", "decode.onnx", "weights.data"
TOLERANCE = 1e-4
CHECKED_TOKENS = 64
_CHECKED_BATCH, _CHECKED_PROMPT = 2, 75  # neither is what the graphs were traced with
_LARGE = 1024  # bytes: smaller constants stay inside the graphs
_ALONG = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json",
          "chat_template.jinja", "special_tokens_map.json")  # fmt: skip


@dataclass(frozen=True)
class OnnxResult:
    """What was exported.

    Attributes:
        output: the directory.
        files: their sizes in bytes, by name.
        states: what the graphs hand on.
        difference: largest of the logits over `CHECKED_TOKENS` decoded tokens, torch against
            onnxruntime, as a share of the largest logit where that is above 1; None for a dry run.
        dry_run: whether nothing was written.
    """

    output: Path
    files: dict[str, int]
    states: tuple[StateSpec, ...]
    difference: float | None
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return asdict(self) | {"output": str(self.output)}


def export_onnx(
    model: str | Path,
    output: str | Path,
    *,
    force: bool = False,
    dry_run: bool = False,
    seed: int = 0,
) -> OnnxResult:
    """Export a checkpoint as a graph for prompts and one for single tokens, in float32.

    Both take any batch size, the first any length; rows of a batch have the same length. Their
    weights lie once in a file beside them.

    Args:
        model: a directory or a hub id.
        output: the directory to write.
        force: replace an existing directory.
        dry_run: check and plan only.
        seed: of the random prompt that the graphs are checked with.

    Raises:
        InputError: the checkpoint cannot be exported; nothing was written.
        HybridizeError: a package is missing, or the graphs compute something else than torch;
            nothing was written.
    """
    output, source = Path(output), resolve(model)
    check_output(output, source, force=force)
    if not dry_run:
        require_extra("onnx", ("onnx", "onnxscript", "onnxruntime"), "exporting to ONNX")
    hybrid = load_model(source, dtype=torch.float32)
    require_exportable(hybrid.config, str(source))
    specs = tuple(state_specs(hybrid.config))
    if dry_run:
        size = sum(parameter.nbytes for parameter in hybrid.parameters())
        return OnnxResult(output, {WEIGHTS: size}, specs, None, True)
    with partial_directory(output) as partial:
        with _quiet_exporter():
            _write_graphs(hybrid, specs, partial)
        difference = check(hybrid, partial, seed)
        _write_beside(hybrid, specs, source, partial)
        files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        put_in_place(partial, output, force=force)
    return OnnxResult(output, files, specs, difference, False)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks on packages it does without, and on its own names, to itself."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@torch.no_grad()
def _write_graphs(hybrid: HybridForCausalLM, specs: tuple[StateSpec, ...], folder: Path) -> None:
    graph = Graph(hybrid).eval()
    batch, length, past = (torch.export.Dim(name) for name in ("batch", "length", "past"))
    prompt = torch.zeros(3, 130, dtype=torch.long)
    names = [spec.name for spec in specs]
    prefill = torch.onnx.export(
        graph,
        (prompt,),
        dynamo=True,
        input_names=["input_ids"],
        output_names=["logits", *(f"next.{name}" for name in names)],
        dynamic_shapes=({0: batch, 1: length},),
        verbose=False,
    )
    vary = {"batch": batch, "past": past}
    sizes = {"batch": 3, "past": 130}
    states = tuple(
        torch.zeros([sizes[n] if isinstance(n, str) else n for n in spec.shape]) for spec in specs
    )
    shapes = tuple(
        {place: vary[n] for place, n in enumerate(spec.shape) if isinstance(n, str)}
        for spec in specs
    )
    decode = torch.onnx.export(
        graph,
        (prompt[:, :1], *states),
        dynamo=True,
        input_names=["input_ids", *names],
        output_names=["logits", *(f"next.{name}" for name in names)],
        dynamic_shapes=({0: batch}, shapes),
        verbose=False,
    )
    assert prefill is not None
    assert decode is not None
    _save_with_shared_weights(prefill.model_proto, decode.model_proto, folder)


def _save_with_shared_weights(prefill: Any, decode: Any, folder: Path) -> None:
    """Write two models whose large tensors lie once in a file beside them."""
    import onnx
    from onnx.external_data_helper import set_external_data

    places: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS).open("wb") as file:
        for proto, name in ((prefill, PREFILL), (decode, DECODE)):
            for tensor in proto.graph.initializer:
                data = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(data) < _LARGE:
                    continue
                key = hashlib.sha256(data).digest()
                if key not in places:
                    file.seek(-file.tell() % 4096, os.SEEK_CUR)  # pages, which can be mapped
                    places[key] = (file.tell(), len(data))
                    file.write(data)
                offset, length = places[key]
                for stored in ("float_data", "int32_data", "int64_data"):
                    tensor.ClearField(stored)
                tensor.raw_data = b""  # where set_external_data wants the data to have been
                set_external_data(tensor, WEIGHTS, offset, length)
                tensor.ClearField("raw_data")
            onnx.save_model(proto, folder / name)
        file.flush()
        os.fsync(file.fileno())


@torch.no_grad()
def check(hybrid: HybridForCausalLM, folder: Path, seed: int = 0) -> float:
    """Decode with onnxruntime and with torch, and return how far their logits are apart.

    Raises:
        HybridizeError: further than `TOLERANCE`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    prefill, decode = (
        onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"])
        for name in (PREFILL, DECODE)
    )
    shape = (_CHECKED_BATCH, _CHECKED_PROMPT)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(hybrid.config.vocab_size, shape, generator=generator)
    expected = hybrid(input_ids=ids, use_cache=True, logits_to_keep=1)
    logits, *states = prefill.run(None, {"input_ids": ids.numpy()})
    names = [put.name for put in decode.get_inputs()][1:]
    largest = 0.0
    for step in range(CHECKED_TOKENS):
        wanted = expected.logits[:, -1]
        apart = (torch.from_numpy(logits) - wanted).abs().max()
        largest = max(largest, float(apart / wanted.abs().max().clamp(min=1)))
        if step + 1 < CHECKED_TOKENS:
            ids = wanted.argmax(-1, keepdim=True)
            expected = hybrid(input_ids=ids, cache=expected.cache, use_cache=True, logits_to_keep=1)
            held = dict(zip(names, states, strict=True))
            logits, *states = decode.run(None, {"input_ids": ids.numpy(), **held})
    if not largest <= TOLERANCE:
        raise HybridizeError(
            f"{hybrid.name_or_path}: onnxruntime's logits are {largest:.1e} away from torch's, "
            f"more than {TOLERANCE:.0e}; please report it with the model's config.json"
        )
    return largest


def _write_beside(
    hybrid: HybridForCausalLM, specs: tuple[StateSpec, ...], source: Path, folder: Path
) -> None:
    for name in _ALONG:
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    described = {
        "layout": hybrid.config.layout,
        "vocab_size": hybrid.config.vocab_size,
        "bos_token_id": hybrid.config.bos_token_id,
        "eos_token_id": hybrid.config.eos_token_id,
        "states": [{"name": spec.name, "shape": list(spec.shape)} for spec in specs],
    }
    (folder / "onnx.json").write_text(json.dumps(described, indent=2) + "\n", "utf-8")
