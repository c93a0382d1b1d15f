"""The hybrid model: embeddings, a stream of pre-norm blocks, a language-model head."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from hybridize.modeling.block import HybridBlock
from hybridize.modeling.cache.compact import make_cache
from hybridize.modeling.cache.format import CacheFormat
from hybridize.modeling.cache.hybrid import HybridCache, as_hybrid_cache
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layers.context import BlockContext
from hybridize.modeling.layers.decode_attention import grouped_sdpa
from hybridize.modeling.layers.linear import Linear
from hybridize.modeling.layers.mamba2 import Mamba2
from hybridize.modeling.layers.norm import RMSNorm
from hybridize.modeling.layers.rope import RotaryEmbedding
from hybridize.modeling.masks import causal_masks, padding_mask
from hybridize.modeling.model_spec import attention_blocks
from hybridize.modeling.packed_sequences import positions_from_seq_idx, seq_idx_from_positions


class HybridPreTrainedModel(PreTrainedModel):
    """The class attributes that transformers reads, and the initialization of weights."""

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
        """Initialize as mamba_ssm does: dt from 1e-3 to 1e-1, decay rates from 1 to 16."""
        super()._init_weights(module)
        if isinstance(module, Mamba2):
            low, high = math.log(1e-3), math.log(1e-1)
            dt = torch.exp(
                torch.rand_like(module.dt_bias, dtype=torch.float32) * (high - low) + low
            )
            init.copy_(module.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            init.copy_(module.A_log, torch.log(torch.empty_like(module.A_log).uniform_(1, 16)))
            init.ones_(module.D)
            init.kaiming_uniform_(module.conv1d.weight, a=math.sqrt(5))


class HybridModel(HybridPreTrainedModel):
    """Embeddings, blocks and the last norm.

    Attributes:
        cache_format: the dtypes of the caches that the model makes.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.blocks = nn.ModuleList(
            HybridBlock(config, sizes, layer_idx) for layer_idx, sizes in enumerate(config.blocks)
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
        hybrid_cache = None if cache is None else as_hybrid_cache(cache)
        seq_idx = self._packed_sequences(x, attention_mask, position_ids, cache, seq_idx)
        supports_packed = hybrid_cache is not None and hybrid_cache.supports_packed_sequences
        if seq_idx is not None and (use_cache or cache is not None) and not supports_packed:
            raise ValueError("a cache cannot continue packed sequences; pass use_cache=False")
        checkpointing = self.gradient_checkpointing and self.training
        if supports_packed and checkpointing:
            raise ValueError("gradient checkpointing would fill a SegmentCache twice")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and seq_idx is None
        if use_cache and not checkpointing and cache is None:
            cache = hybrid_cache = make_cache(self.config, self.cache_format)
        context = self.block_context(
            x,
            seq_idx,
            hybrid_cache,
            attention_mask=attention_mask,
            position_ids=position_ids,
            attention_kwargs=kwargs,
        )
        for block in self.blocks:
            x = block(x, context)
        if hybrid_cache is not None:
            hybrid_cache.count(x.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), cache=cache)

    def block_context(
        self,
        x: torch.Tensor,
        seq_idx: torch.Tensor | None = None,
        cache: HybridCache | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> BlockContext:
        """Return the second argument of every block; callers may then run the blocks one by one.

        Args:
            x: ``(batch, length, hidden)``; only its shape, dtype and device matter.
            seq_idx: ``(batch, length)``, see `HybridForCausalLM.forward`.
            cache: the cache that the blocks read and update.
            attention_mask: ``(batch, past + length)``, 0 on padding.
            position_ids: ``(batch, length)``; counted from the cache and ``seq_idx`` if None.
            attention_kwargs: further arguments of the attention function.
        """
        all_seq_idx, continues_previous = seq_idx, None
        if cache is not None and seq_idx is not None:
            all_seq_idx, continues_previous = cache.extend_seq_idx(seq_idx)
        if position_ids is None:
            position_ids = self._positions(x, all_seq_idx, cache)
        arguments = (self.config, x, attention_mask, position_ids, seq_idx)
        masks = (
            causal_masks(*arguments, None) if cache is None else cache.attention_masks(*arguments)
        )
        attention_function = None if cache is None else cache.attention_function
        return BlockContext(
            cache=cache,
            attention_function=attention_function or self._attention_function(x),
            attention_masks=masks,
            padding_mask=padding_mask(attention_mask, x.shape[1]),
            rotary=None if self.rotary_emb is None else self.rotary_emb(x, position_ids),
            seq_idx=seq_idx,
            continues_previous=continues_previous,
            attention_kwargs=attention_kwargs or {},
        )

    def _attention_function(self, x: torch.Tensor) -> Callable[..., Any]:
        """Return the attention function that the configuration names: SDPA, flash, ..."""
        name = self.config._attn_implementation
        exact = x.dtype in (torch.float32, torch.float64)  # in 16 bits it would not be faster
        if name == "sdpa" and x.shape[1] == 1 and x.device.type == "cpu" and exact:
            return grouped_sdpa
        return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)

    def _positions(
        self, x: torch.Tensor, all_seq_idx: torch.Tensor | None, cache: HybridCache | None
    ) -> torch.Tensor:
        """Return the positions of new tokens, ``(batch or 1, length)``.

        Args:
            x: ``(batch, length, hidden)``.
            all_seq_idx: ``(batch, past + length)``, the sequence of every token.
            cache: knows the number of past tokens.
        """
        length = x.shape[1]
        if all_seq_idx is not None:
            return positions_from_seq_idx(all_seq_idx)[:, -length:]
        # A cache counts tokens in its attention layers. Without attention, positions do not matter.
        has_attention = {"full_attention", "sliding_attention"} & set(self.config.layer_types)
        past = cache.get_seq_length() if cache is not None and has_attention else 0
        # `past` may be a tensor on the device: add it, without reading its value.
        return torch.arange(length, device=x.device)[None] + past

    def _packed_sequences(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
        seq_idx: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Return each token's sequence number, ``(batch, length)``; None if no row is packed."""
        if seq_idx is not None:
            if attention_mask is not None:
                raise ValueError("seq_idx and attention_mask exclude each other")
            return seq_idx.expand(x.shape[0], -1)
        if position_ids is None or attention_mask is not None or cache is not None:
            return None
        found = seq_idx_from_positions(position_ids)
        return None if found is None else found.expand(x.shape[0], -1)


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
        """Return the logits of the token after each given one, and the loss if there are labels.

        Args:
            input_ids: ``(batch, length)``.
            attention_mask: ``(batch, past + length)``, 0 on padding. Padding is on the left.
            position_ids: ``(batch, length)``. Without a mask and a cache, another packed sequence
                begins wherever they do not rise by one.
            cache: from an earlier call; updated in place.
            inputs_embeds: ``(batch, length, hidden)``, instead of ``input_ids``.
            labels: ``(batch, length)``, -100 for tokens without a loss. The model shifts them.
            use_cache: whether to return a cache; the configuration decides if None.
            logits_to_keep: compute logits only for this many last positions, or for the positions
                in this tensor; 0 for all.
            seq_idx: ``(batch, length)``, the number of each token's packed sequence.
            past_key_values: the older name of ``cache``.

        Returns:
            ``logits`` ``(batch, kept, vocab)``, ``loss``, and ``cache``.
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
        """Generate as transformers does, with a cache in the model's ``cache_format``."""
        has_cache = kwargs.get("cache") is not None or kwargs.get("past_key_values") is not None
        if self.model.cache_format.compact and not has_cache:
            kwargs["cache"] = make_cache(self.config, self.model.cache_format)
        return super().generate(*args, **kwargs)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args
        )
        # transformers' own caches cannot count tokens without attention.
        if model_kwargs.get("cache") is not None and not attention_blocks(self.config.blocks):
            model_kwargs["cache"] = as_hybrid_cache(model_kwargs["cache"])
