"""The hybrid model: embeddings, a stream of pre-norm blocks, a language-model head."""

import math
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from hybridize.modeling.cache.compact import CacheFormat
from hybridize.modeling.cache.hybrid import SegmentCache
from hybridize.modeling.cache.static import StaticHybridCache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.attention import Attention
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.linear import Linear
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.mlp import FeedForward
from hybridize.modeling.layers.norm import RMSNorm
from hybridize.modeling.layers.rope import RotaryEmbedding
from hybridize.modeling.layers.sizes import AttentionSizes, BlockSizes, MambaSizes, MLPSizes

_MIXERS: dict[type[BlockSizes], type[nn.Module]] = {
    AttentionSizes: Attention,
    MambaSizes: Mamba2,
    MLPSizes: FeedForward,
}


class HybridBlock(GradientCheckpointingLayer):
    """A norm, a mixer of any kind, and the residual connection around them."""

    def __init__(self, config: HybridConfig, sizes: BlockSizes, index: int) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mixer = _MIXERS[type(sizes)](config, sizes, index)
        self.residual_multiplier = config.residual_multiplier
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(self, x: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Add the mixer's view of ``x``, ``(batch, length, hidden)``, to it."""
        y = self.mixer(self.norm(x.to(self.norm.weight.dtype)), context)
        if self.residual_multiplier != 1.0:
            y = y * self.residual_multiplier
        if self.residual_in_fp32:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x + y


class HybridPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of the model."""

    config: HybridConfig
    config_class = HybridConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridBlock"]  # noqa: RUF012 - transformers' own convention
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _is_stateful = True  # a recurrent state cannot be rolled back
    _can_record_outputs = {"hidden_states": HybridBlock}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as mamba_ssm does: steps of 1e-3 to 1e-1, decay rates of 1 to 16."""
        super()._init_weights(module)
        if isinstance(module, Mamba2):
            low, high = math.log(1e-3), math.log(1e-1)
            dt = torch.exp(
                torch.rand_like(module.dt_bias, dtype=torch.float32) * (high - low) + low
            )
            init.copy_(module.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # softplus, inverted
            init.copy_(module.A_log, torch.log(torch.empty_like(module.A_log).uniform_(1, 16)))
            init.ones_(module.D)
            init.kaiming_uniform_(module.conv1d.weight, a=math.sqrt(5))


class HybridModel(HybridPreTrainedModel):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.blocks = nn.ModuleList(
            HybridBlock(config, sizes, index) for index, sizes in enumerate(config.blocks)
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.rotary_emb = RotaryEmbedding(config) if config.head_dim is not None else None
        self.gradient_checkpointing = False
        self.cache_format = CacheFormat()
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        seq_idx: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the blocks; see `HybridForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.embedding_multiplier != 1.0:
            x = x * self.config.embedding_multiplier
        packed = self._packed_sequences(x, attention_mask, position_ids, cache, seq_idx)
        segmented = isinstance(cache, SegmentCache)
        if packed is not None and (use_cache or cache is not None) and not segmented:
            raise ValueError("packed sequences leave no cache to go on from; pass use_cache=False")
        if segmented and self.gradient_checkpointing and self.training:
            raise ValueError("a SegmentCache would be filled again by gradient checkpointing")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and packed is None
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and cache is None:
            cache = self.cache_format.make(self.config)
        context = self._context(x, attention_mask, position_ids, cache, packed, kwargs)
        for block in self.blocks:
            x = block(x, context)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), cache=cache)

    def block_context(
        self, x: torch.Tensor, seq_idx: torch.Tensor | None = None, cache: Cache | None = None
    ) -> BlockContext:
        """Return what the blocks are told, for running them one by one.

        Args:
            x: ``(batch, length, hidden)``, gives shape, dtype and device.
            seq_idx: ``(batch, length)``, see `HybridForCausalLM.forward`.
            cache: what to go on from.
        """
        return self._context(x, None, None, cache, seq_idx, {})

    def _packed_sequences(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
        seq_idx: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Return ``(batch, length)`` sequence numbers, or None where rows are not packed."""
        if seq_idx is not None:
            if attention_mask is not None:
                raise ValueError("seq_idx and attention_mask exclude each other")
            return seq_idx.expand(x.shape[0], -1)
        if position_ids is None or attention_mask is not None or cache is not None:
            return None
        found = seq_idx_from_positions(position_ids)
        return None if found is None else found.expand(x.shape[0], -1)

    def _context(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
        packed: torch.Tensor | None,
        attention_kwargs: dict[str, Any],
    ) -> BlockContext:
        if packed is not None and isinstance(cache, SegmentCache):
            return self._segment_context(x, position_ids, cache, packed, attention_kwargs)
        layer_types = set(self.config.layer_types)
        has_attention = bool(layer_types & {"full_attention", "sliding_attention"})
        if position_ids is None and packed is not None:
            position_ids = positions_from_seq_idx(packed)
        if position_ids is None:
            # Without attention, positions do not matter, and a cache does not count them.
            past = cache.get_seq_length() if cache is not None and has_attention else 0
            # A sum, as the past may be a number on the device.
            position_ids = torch.arange(x.shape[1], device=x.device)[None] + past

        masks: dict[str, Any] = {}
        # transformers finds packed sequences by their positions.
        places = position_ids if packed is None else positions_from_seq_idx(packed)
        arguments = (self.config, x, attention_mask, cache, places)
        if isinstance(cache, StaticHybridCache):
            if x.shape[1] != 1 or attention_mask is not None:
                raise ValueError("a StaticHybridCache takes one token per sequence and no mask")
            masks |= cache.visible(position_ids)
        else:
            if "full_attention" in layer_types:
                masks["full_attention"] = create_causal_mask(*arguments)
            if "sliding_attention" in layer_types:
                masks["sliding_attention"] = create_sliding_window_causal_mask(*arguments)
        return BlockContext(
            cache=cache,
            attention_masks=masks,
            padding_mask=_padding_mask(attention_mask, x.shape[1]),
            rotary=None if self.rotary_emb is None else self.rotary_emb(x, position_ids),
            seq_idx=packed,
            goes_on=None,
            attention_kwargs=attention_kwargs,
        )

    def _segment_context(
        self,
        x: torch.Tensor,
        position_ids: torch.Tensor | None,
        cache: SegmentCache,
        seq_idx: torch.Tensor,
        attention_kwargs: dict[str, Any],
    ) -> BlockContext:
        """Return the surroundings of a segment whose sequences may have begun before it."""
        goes_on = cache.extend(seq_idx)
        assert cache.seq_idx is not None
        if position_ids is None:
            position_ids = positions_from_seq_idx(cache.seq_idx)[:, -x.shape[1] :]
        masks = {}
        for kind, window in (
            ("full_attention", None),
            ("sliding_attention", self.config.sliding_window),
        ):
            if kind in self.config.layer_types:
                masks[kind] = segment_mask(cache.seq_idx, x.shape[1], window, x.dtype)
        return BlockContext(
            cache=cache,
            attention_masks=masks,
            padding_mask=None,
            rotary=None if self.rotary_emb is None else self.rotary_emb(x, position_ids),
            seq_idx=seq_idx,
            goes_on=goes_on,
            attention_kwargs=attention_kwargs,
        )


class HybridForCausalLM(HybridPreTrainedModel, GenerationMixin):
    """A hybrid with its language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.model = HybridModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        seq_idx: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token after each of the given ones.

        Args:
            input_ids: ``(batch, length)``.
            attention_mask: ``(batch, past + length)``, 0 on padding, which goes on the left.
            position_ids: ``(batch, length)``; without a mask and a cache, places where they do
                not go up by one begin another packed sequence.
            cache: from an earlier call; moved on in place.
            inputs_embeds: ``(batch, length, hidden)``, instead of ``input_ids``.
            labels: ``(batch, length)``, -100 where none; shifted inside.
            use_cache: return a cache; the configuration's choice if None.
            logits_to_keep: how many last positions get logits, or which; all if 0.
            seq_idx: ``(batch, length)``, which packed sequence a token belongs to.
            past_key_values: ``cache`` under its older name.

        Returns:
            ``logits`` ``(batch, kept, vocab)``, ``loss`` if there were labels, and ``cache``.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            seq_idx=seq_idx,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep:
            keep = (
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            )
            hidden = hidden[:, keep]
        logits = self.lm_head(hidden.to(self.lm_head.weight.dtype))
        if self.config.logits_scaling != 1.0:
            logits = logits / self.config.logits_scaling
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Continue texts as transformers does, with a cache in the model's ``cache_format``."""
        stored = self.model.cache_format
        if stored.compact and kwargs.get("cache") is None and kwargs.get("past_key_values") is None:
            kwargs["cache"] = stored.make(self.config)
        return super().generate(*args, **kwargs)


def seq_idx_from_positions(position_ids: torch.Tensor) -> torch.Tensor | None:
    """Number the sequences that are packed into each row; None if each row is one.

    Args:
        position_ids: ``(batch, length)``.
    """
    begins = position_ids.diff(dim=-1) != 1
    if not begins.any():
        return None
    return nn.functional.pad(begins, (1, 0)).cumsum(-1)


def positions_from_seq_idx(seq_idx: torch.Tensor) -> torch.Tensor:
    """Count every packed sequence's tokens from zero: ``(batch, length)`` to the same."""
    place = torch.arange(seq_idx.shape[1], device=seq_idx.device).expand_as(seq_idx)
    begins = nn.functional.pad(seq_idx.diff(dim=-1) != 0, (1, 0), value=True)
    return place - (place * begins).cummax(-1).values


def segment_mask(
    seq_idx: torch.Tensor, length: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return what the last tokens see of themselves and of those before, to be added to scores.

    Args:
        seq_idx: ``(batch, tokens)``, of all tokens.
        length: how many of the last ones ask.
        window: how many tokens back one sees, itself included; all if None. A sliding cache
            holds no more than ``window - 1`` of the tokens before.
        dtype: of the mask.

    Returns:
        ``(batch, 1, length, keys)``.
    """
    total = seq_idx.shape[1]
    keys = total if window is None else min(total - length, window - 1) + length
    place = torch.arange(total, device=seq_idx.device)
    back = place[-length:, None] - place[None, -keys:]
    seen = (back >= 0) & (seq_idx[:, -length:, None] == seq_idx[:, None, -keys:])
    if window is not None:
        seen &= back < window
    mask = torch.zeros(seen.shape, dtype=dtype, device=seq_idx.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _padding_mask(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    if attention_mask is None or attention_mask.ndim != 2 or length == 1:
        return None  # a single token that is being decoded is never padding
    mask = attention_mask[:, -length:].bool()
    return None if mask.all() else mask
