"""Traces a model into two ONNX files that share one file of weights."""

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hybridize.exporters.onnx.graphs import Graph, StateSpec
from hybridize.modeling.model import HybridForCausalLM

PREFILL, DECODE, WEIGHTS = "prefill.onnx", "decode.onnx", "weights.data"
_TRACED_BATCH, _TRACED_LENGTH = 3, 130
_MIN_SHARED = 1024  # bytes; smaller constants stay inside the graphs
_PAGE = 4096  # bytes; tensors start on page boundaries so that the file can be memory-mapped


@torch.no_grad()
def trace_prefill(hybrid: HybridForCausalLM, specs: tuple[StateSpec, ...]) -> Any:
    """Return the ONNX model that reads a prompt. Its tensors share the memory of the model's."""
    batch, length = (torch.export.Dim(name) for name in ("batch", "length"))
    prompt = torch.zeros(_TRACED_BATCH, _TRACED_LENGTH, dtype=torch.long)
    return _trace(hybrid, (prompt,), [], specs, ({0: batch, 1: length},))


@torch.no_grad()
def trace_decode(hybrid: HybridForCausalLM, specs: tuple[StateSpec, ...]) -> Any:
    """Return the ONNX model that decodes one token. Its tensors share the memory of the model's."""
    batch, past = (torch.export.Dim(name) for name in ("batch", "past"))
    dims = {"batch": batch, "past": past}
    sizes = {"batch": _TRACED_BATCH, "past": _TRACED_LENGTH}
    token = torch.zeros(_TRACED_BATCH, 1, dtype=torch.long)
    states = tuple(
        torch.zeros([sizes[n] if isinstance(n, str) else n for n in spec.shape]) for spec in specs
    )
    varying = tuple(
        {dim: dims[n] for dim, n in enumerate(spec.shape) if isinstance(n, str)} for spec in specs
    )
    names = [spec.name for spec in specs]
    return _trace(hybrid, (token, *states), names, specs, ({0: batch}, varying))


def _trace(
    hybrid: HybridForCausalLM,
    inputs: tuple[torch.Tensor, ...],
    state_inputs: list[str],
    specs: tuple[StateSpec, ...],
    dynamic_shapes: tuple[Any, ...],
) -> Any:
    with _quiet_exporter():
        program = torch.onnx.export(
            Graph(hybrid).eval(),
            inputs,
            dynamo=True,
            input_names=["input_ids", *state_inputs],
            output_names=["logits", *(f"next.{spec.name}" for spec in specs)],
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    assert program is not None
    return program.model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about optional packages and about names it generates."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def save_with_shared_weights(prefill: Any, decode: Any, folder: Path) -> None:
    """Write both graphs. Large tensors are written once, to a file that both graphs refer to.

    Args:
        prefill, decode: the models that `trace_prefill` and `trace_decode` return. Their large
            tensors are replaced by references to the file.
        folder: the directory to write to.
    """
    import numpy as np
    import onnx_ir

    written: dict[bytes, tuple[int, int]] = {}  # hash of the data to offset and length
    with (folder / WEIGHTS).open("wb") as file:
        for model, name in ((prefill, PREFILL), (decode, DECODE)):
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor.nbytes < _MIN_SHARED:
                    continue
                data = np.ascontiguousarray(tensor.numpy()).view(np.uint8).data
                key = hashlib.sha256(data).digest()
                if key not in written:
                    file.seek(-file.tell() % _PAGE, os.SEEK_CUR)
                    written[key] = (file.tell(), data.nbytes)
                    file.write(data)
                value.const_value = onnx_ir.ExternalTensor(
                    WEIGHTS,
                    *written[key],
                    tensor.dtype,
                    shape=tensor.shape,
                    name=value.name,
                    base_dir=folder,
                )
            onnx_ir.save(model, folder / name)
        file.flush()
        os.fsync(file.fileno())
