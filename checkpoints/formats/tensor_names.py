"""Names of tensors that differ from those that a format writes, and what to do about them."""

from collections.abc import Sequence

from hybridize.checkpoints.formats.base import Names

_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "module.": "DistributedDataParallel or DeepSpeed",
    "base_model.model.": "peft",
}
"""Prefixes that training tools leave behind. Transformers ignores such tensors and starts with
random ones, so it is not certain that somebody checked such a checkpoint."""


def other_names(stored: Sequence[str], names: Names, *, tied: bool) -> dict[str, str]:
    """Return the format's names of tensors that are stored under other ones, as transformers does.

    These are all tensors of a model that was saved without its head (``LlamaModel`` instead of
    ``LlamaForCausalLM``), and a tied embedding that is stored as the head.

    Args:
        stored: the names in the checkpoint.
        names: those of the format.
        tied: the embedding and the head share their weights.
    """
    head, embedding = f"{names.head}.weight", f"{names.embedding}.weight"
    if embedding in stored:
        return {}
    prefix, _, bare = embedding.partition(".")
    if bare in stored:
        return {name: f"{prefix}.{name}" for name in stored if name != head}
    if tied and head in stored:
        return {head: embedding}
    return {}


def describe_missing(missing: Sequence[str], stored: Sequence[str], names: Names) -> list[str]:
    """Return a line for each missing tensor, and how to repair the checkpoint where that is known.

    Args:
        missing: the missing tensors.
        stored: the names in the checkpoint.
        names: those of the format.
    """
    wrapped = {bare: prefix for bare, prefix in map(_unwrapped, stored) if prefix is not None}
    lines = []
    for name in missing:
        if name in wrapped:
            reason = (
                f"its name has the prefix {wrapped[name]!r} of {_WRAPPERS[wrapped[name]]}: unwrap "
                "the model and save it again"
            )
        elif name == f"{names.head}.weight":
            reason = (
                "config.json says that the head does not share the embedding's weights; if it "
                "does, set tie_word_embeddings to true"
            )
        else:
            reason = "config.json implies it"
        lines.append(f"tensor {name!r} is missing; {reason}")
    return lines


def _unwrapped(name: str) -> tuple[str, str | None]:
    """Return a name without the prefixes of training tools, and the first of them, if any."""
    found = [prefix for prefix in _WRAPPERS if prefix in name]
    for prefix in found:
        name = name.replace(prefix, "")
    return name, found[0] if found else None
