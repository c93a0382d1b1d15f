"""`hybridize inspect --states`: how long SSM states remember, and how far attention looks back.

This helps to choose which attention blocks to keep. Swapping an attention block costs most if it
looks far back and the SSM states near it forget soon.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.load import check_tokens, load_model, load_tokenizer
from hybridize.console import console
from hybridize.errors import InputError
from hybridize.kernels.reference.ssd_step import discretize
from hybridize.modeling.cache.hybrid import HybridCache
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.rope import rotate
from hybridize.modeling.model import HybridForCausalLM

_POINTS = 32
"""The number of positions at which state norms are measured."""


@dataclass(frozen=True)
class MambaMemory:
    """How long a Mamba-2 block remembers.

    Attributes:
        block: its index in the layout.
        norms: the Frobenius norm of the whole state at each of `StateReport.positions`.
        lengths: for each head, the number of tokens after which 1/e of an input is left, at the
            mean decay over the text: 1 / mean(-log decay).
    """

    block: int
    norms: tuple[float, ...]
    lengths: tuple[float, ...]


@dataclass(frozen=True)
class AttentionSpan:
    """How far distance an attention block looks.

    Attributes:
        block: its index in the layout.
        distances: for each head, the mean distance in tokens, weighted by attention.
        shares: the share of attention at distances 0, 1, 2 to 3, 4 to 7, …, averaged over heads
            and queries.
    """

    block: int
    distances: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class StateReport:
    """The measurements on a text.

    Attributes:
        tokens: the length of the text.
        positions: the numbers of tokens after which state norms were measured.
        mamba: one entry per Mamba-2 block.
        attention: one entry per attention block.
    """

    tokens: int
    positions: tuple[int, ...]
    mamba: tuple[MambaMemory, ...]
    attention: tuple[AttentionSpan, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as JSON values."""
        return asdict(self)


def inspect_states(model: str | Path, file: str | Path, *, tokens: int = 1024) -> StateReport:
    """Run a checkpoint on the beginning of a text and measure its memory.

    Args:
        model: a directory or a hub id.
        file: a UTF-8 text.
        tokens: the number of tokens to use; at most the trained context is used.

    Raises:
        InputError: a file cannot be read, or the text is too short.
    """
    try:
        text = Path(file).read_text("utf-8")
    except OSError as error:
        raise InputError(f"`states={file}`: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"`states={file}`: not UTF-8 text ({error.reason})") from error
    if tokens < 2:
        raise InputError(f"`states_tokens={tokens}`: must be at least 2")
    directory = resolve(model)
    hybrid = load_model(directory, dtype=torch.float32)
    limit = min(tokens, hybrid.config.max_position_embeddings)
    ids = load_tokenizer(directory)(text, return_tensors="pt").input_ids.to(torch.long)[:, :limit]
    if ids.shape[1] < 2:
        raise InputError(f"`states={file}`: the text has fewer than two tokens")
    check_tokens(ids[0].tolist(), hybrid.config.vocab_size, directory)
    return measure_states(hybrid, ids)


@torch.no_grad()
def measure_states(model: HybridForCausalLM, ids: torch.Tensor) -> StateReport:
    """Measure a model's memory on tokens ``(1, length)``."""
    lengths: dict[int, torch.Tensor] = {}
    spans: list[AttentionSpan] = []
    hooks = []
    for index, block in enumerate(model.model.blocks):
        mixer = block.mixer
        if isinstance(mixer, Mamba2):
            record = partial(_record_decay, lengths, index, mixer)
            hooks.append(mixer.in_proj.register_forward_hook(record))
        elif isinstance(mixer, Attention):
            hooks.append(mixer.register_forward_pre_hook(partial(_record_span, spans, index)))
    try:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    positions, norms = _norms(model, ids, list(lengths))
    mamba = tuple(
        MambaMemory(index, tuple(norms[index]), tuple(found.tolist()))
        for index, found in lengths.items()
    )
    return StateReport(ids.shape[1], positions, mamba, tuple(spans))


def _record_decay(
    lengths: dict[int, torch.Tensor], index: int, mixer: Mamba2, _module: nn.Module,
    _inputs: Any, projected: torch.Tensor,
) -> None:  # fmt: skip
    dt = discretize(projected[..., -mixer.sizes.num_heads :], mixer.dt_bias, mixer.sizes.dt_limit)
    rate = dt.mean((0, 1)) * mixer.A_log.exp()
    lengths[index] = 1 / rate.clamp(min=torch.finfo(rate.dtype).tiny)


def _record_span(
    spans: list[AttentionSpan],
    index: int,
    mixer: Attention,
    arguments: tuple[torch.Tensor, BlockContext],
) -> None:
    weights = attention_weights(mixer, *arguments)[0]  # (heads, queries, keys)
    length = weights.shape[-1]
    position = torch.arange(length, device=weights.device)
    distance = (position[:, None] - position).clamp(min=0)
    distances = (weights * distance).sum(-1).mean(-1)
    # Bucket 0 is distance 0, bucket 1 is distance 1, bucket 2 is 2 to 3, bucket 3 is 4 to 7, …
    bucket = torch.where(
        distance > 0, distance.clamp(min=1).to(torch.float64).log2().floor() + 1, 0
    )
    mean = weights.mean(0)
    shares = mean.new_zeros(int(bucket.max()) + 1).scatter_add_(
        0, bucket.long().flatten(), mean.flatten()
    )
    spans.append(AttentionSpan(index, tuple(distances.tolist()), tuple((shares / length).tolist())))


def attention_weights(mixer: Attention, x: torch.Tensor, context: BlockContext) -> torch.Tensor:
    """Return the attention weights, ``(batch, heads, queries, keys)``.

    Fused attention does not return them, so they are computed here a second time.

    Args:
        mixer: the attention of the block.
        x: the input of the mixer, ``(batch, length, hidden)``, without padding.
        context: has the rotary embedding.
    """
    sizes = mixer.sizes
    q = mixer.q_proj(x).unflatten(-1, (sizes.num_heads, sizes.head_dim))
    k = mixer.k_proj(x).unflatten(-1, (sizes.num_kv_heads, sizes.head_dim))
    if sizes.qk_norm:
        q, k = mixer.q_norm(q), mixer.k_norm(k)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    if sizes.rope and context.rotary is not None:
        q, k = rotate(q, *context.rotary), rotate(k, *context.rotary)
    k = k.repeat_interleave(sizes.num_heads // sizes.num_kv_heads, dim=1)
    scores = q @ k.mT * mixer.scaling
    position = torch.arange(x.shape[1], device=x.device)
    distance = position[:, None] - position
    hidden = (distance < 0) | (distance >= (sizes.sliding_window or x.shape[1]))
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def _norms(
    model: HybridForCausalLM, ids: torch.Tensor, blocks: list[int]
) -> tuple[tuple[int, ...], dict[int, list[float]]]:
    """Return the positions at which norms were measured, and the norms by block."""
    norms: dict[int, list[float]] = {index: [] for index in blocks}
    if not blocks:
        return (), norms
    cache = HybridCache(model.config)
    positions: list[int] = []
    pieces = ids.split(max(1, -(-ids.shape[1] // _POINTS)), dim=1)
    with console.progress("measuring states", ids.shape[1], "tokens") as progress:
        for piece in pieces:
            model(input_ids=piece, cache=cache, use_cache=True, logits_to_keep=1)
            positions.append(piece.shape[1] + (positions[-1] if positions else 0))
            for index in blocks:
                layer = cache.layers[index]
                assert isinstance(layer, LinearAttentionCacheLayerMixin)
                state = layer.recurrent_states[0]
                assert state is not None
                norms[index].append(float(state.norm()))
            progress.advance(piece.shape[1])
    return tuple(positions), norms
