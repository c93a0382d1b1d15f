"""What a directory without config.json may be, and what its owner can do."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

_KINDS = (
    (
        "adapter_config.json",
        "an adapter (LoRA); merge it into its base model with peft's merge_and_unload, and save "
        "that",
    ),
    (
        "params.json",
        "a checkpoint in the format of its makers; use the model's Hugging Face version, or "
        "convert it with the script that transformers has for it",
    ),
    ("*.gguf", "a GGUF file, which is for llama.cpp; use the checkpoint that it was made from"),
    (
        "model_index.json",
        "a pipeline of diffusers; hybridize converts language models",
    ),
    (
        "*/config.json",
        "the parent of a checkpoint; name the directory that has config.json in it",
    ),
    ("*.safetensors", "weights without their config.json; copy it from the original model"),
)
"""A file by which a kind of directory is recognized, and what to say; the first match counts."""


def describe(directory: Path) -> str:
    """Say in a few words what a directory without config.json seems to be."""
    found = [path for pattern in ("*", "*/config.json") for path in directory.glob(pattern)]
    return describe_names([path.relative_to(directory).as_posix() for path in found])


def describe_names(names: Iterable[str]) -> str:
    """Say in a few words what the files of a directory without config.json seem to be.

    Args:
        names: their paths in the directory, with slashes.
    """
    ordered = sorted(names)
    for pattern, kind in _KINDS:
        for name in ordered:
            if name.count("/") == pattern.count("/") and fnmatchcase(name, pattern):
                return f"{name} says that this is {kind}"
    return "is this a Hugging Face checkpoint?"
