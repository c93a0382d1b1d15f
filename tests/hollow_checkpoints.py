"""Checkpoints with the shapes of published models and without data, for tests that read no weights.

A weight file has a header and its full size, but takes no disk space (a sparse file).
"""

import json
import shutil
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hybridize.checkpoints.formats import Format, config_from_json
from hybridize.conversion.config import ConvertConfig
from hybridize.conversion.plan import MambaChoice, plan_conversion
from hybridize.demo import CHECKPOINT
from hybridize.modeling.model_spec import ModelSpec

_SHARD = 5 * 10**9  # bytes
_LLAMA_3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}

SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": _LLAMA_3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "meta-llama/Llama-3.1-70B": _LLAMA_3
    | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "Qwen/Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "rms_norm_eps": 1e-6,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    },
}
"""From the models' config.json files."""


def write_hollow(
    folder: Path, format_: Format, config: ModelSpec, raw: dict[str, Any], tokenizer: Path
) -> None:
    """Write a bfloat16 checkpoint without data, with the tokenizer of another checkpoint."""
    folder.mkdir(parents=True)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps(raw))
    shards: list[dict[str, Any]] = [{}]
    ends = [0]
    for entry in format_.tensor_map(config):
        size = 2 * prod(entry.shape)
        if ends[-1] + size > _SHARD:
            shards.append({})
            ends.append(0)
        offsets = [ends[-1], ends[-1] + size]
        shards[-1][entry.disk] = {"dtype": "BF16", "shape": entry.shape, "data_offsets": offsets}
        ends[-1] += size
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    weight_map = {}
    for name, shard, end in zip(names, shards, ends, strict=True):
        weight_map |= dict.fromkeys(shard, name)
        header = json.dumps(shard).encode()
        header += b" " * (-len(header) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + end)
    index = {"metadata": {"total_size": sum(ends)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_converted(source: Path, output: Path, options: dict[str, Any]) -> None:
    """Write what `hybridize convert` would write, but without data and with uniform selection."""
    raw = json.loads((source / "config.json").read_text("utf-8"))
    config = config_from_json(raw, source)[1]
    given = {each.name: options[each.name] for each in fields(ConvertConfig)}
    chosen = ConvertConfig(**{name: value for name, value in given.items() if value is not None})
    plan = plan_conversion(
        config,
        attention=chosen.attention,
        mamba=MambaChoice.from_config(chosen),
        format_name=chosen.format,
    )
    target = plan.fit.spec
    write_hollow(output, plan.format, target, plan.format.to_raw(target), source)


def write_shape(folder: Path, name: str) -> None:
    """Write a checkpoint of one of `SHAPES` without data, with the bundled tokenizer."""
    raw = SHAPES[name]
    write_hollow(folder, *config_from_json(raw, folder), raw, CHECKPOINT)
    if raw["model_type"] == "qwen2":
        # Qwen's own tokenizer has this token. Transformers would add it to the tokenizer of the
        # Qwen checkpoint, but not to that of the converted one, so that the two would differ.
        path = folder / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.add_special_tokens(["<|endoftext|>"])
        tokenizer.save(str(path))
