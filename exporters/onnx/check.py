"""Compares written graphs in onnxruntime with the model in torch."""

from pathlib import Path

import torch

from hybridize.errors import HybridizeError
from hybridize.exporters.onnx.graph_files import DECODE, PREFILL
from hybridize.file_names import utf8_path
from hybridize.modeling.model import HybridForCausalLM

TOLERANCE = 1e-4
CHECKED_TOKENS = 64
_BATCH, _PROMPT_LEN = 2, 75  # differ from the sizes that the graphs were traced with


@torch.no_grad()
def check(hybrid: HybridForCausalLM, folder: Path, seed: int = 0) -> float:
    """Decode `CHECKED_TOKENS` tokens with onnxruntime and with torch, and compare the logits.

    Args:
        hybrid: the model, in float32.
        folder: the directory of its graphs.
        seed: random seed of the prompt.

    Returns:
        The largest difference of a logit. It is relative to the largest logit if that is above 1.

    Raises:
        HybridizeError: the difference is larger than `TOLERANCE`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with utf8_path(folder) as opened:
        prefill, decode = (
            onnxruntime.InferenceSession(opened / name, options, ["CPUExecutionProvider"])
            for name in (PREFILL, DECODE)
        )
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(hybrid.config.vocab_size, (_BATCH, _PROMPT_LEN), generator=generator)
    expected = hybrid(input_ids=ids, use_cache=True, logits_to_keep=1)
    logits, *states = prefill.run(None, {"input_ids": ids.numpy()})
    state_names = [each.name for each in decode.get_inputs()][1:]
    largest = 0.0
    for number in range(CHECKED_TOKENS):
        expected_logits = expected.logits[:, -1]
        difference = (torch.from_numpy(logits) - expected_logits).abs().max()
        largest = max(largest, float(difference / expected_logits.abs().max().clamp(min=1)))
        if number + 1 < CHECKED_TOKENS:
            ids = expected_logits.argmax(-1, keepdim=True)
            expected = hybrid(input_ids=ids, cache=expected.cache, use_cache=True, logits_to_keep=1)
            past = dict(zip(state_names, states, strict=True))
            logits, *states = decode.run(None, {"input_ids": ids.numpy(), **past})
    if not largest <= TOLERANCE:
        raise HybridizeError(
            f"{hybrid.name_or_path}: the logits of onnxruntime and torch differ by {largest:.1e}, "
            f"more than {TOLERANCE:.0e}; please report it with the model's config.json"
        )
    return largest
