"""Initialize a small Llama with kinds of heads that trained models have: induction and local heads.

Recall needs a head that attends a few tokens back, and a head that finds an earlier occurrence of
the same token (Olsson et al. 2022, "In-context Learning and Induction Heads"). From random weights,
both emerge only after many millions of tokens, more than a CPU can train on in an hour. Therefore
half of the heads start as matching heads (Trockman and Kolter 2023, "Mimetic Initialization of
Self-Attention Layers") and the others as local heads. Training changes both.
"""

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

_EMBEDDING = 0.06

_CONSTANT = 4 * _EMBEDDING
"""The first coordinate of all embeddings: a constant input for the keys of local heads."""

_COPIED = 0.04
_LOCAL_SHARPNESS = 1.3
_LOCAL_FREQUENCIES = 4


@torch.no_grad()
def initialize_for_recall(model: LlamaForCausalLM) -> None:
    """Overwrite the attention weights, and the first coordinate of the embeddings, in place."""
    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(std=_EMBEDDING)[:, 0] = _CONSTANT
    frequencies = model.model.rotary_emb.get_buffer("inv_freq")
    channel = torch.empty(model.model.layers[0].self_attn.head_dim, embeddings.shape[1])
    torch.nn.init.orthogonal_(channel)
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        _match(attention)
        _look_back(attention, frequencies, offsets=(1, 2 + index % 4))
        _copy(attention, channel)


def _match(attention: LlamaAttention) -> None:
    """Make each head attend to earlier occurrences of the current token."""
    key = attention.k_proj.weight.normal_(std=0.08)
    attention.q_proj.weight.normal_(std=0.024).add_(_per_query_head(key, attention), alpha=0.9)


def _copy(attention: LlamaAttention, channel: torch.Tensor) -> None:
    """Make each head copy the attended token to the residual stream.

    All heads of all layers use one subspace, so that a head can pass on what an earlier head has
    copied. The copy is small compared with the embedding of the token that it is added to.
    """
    value = attention.v_proj.weight
    value.normal_(std=0.01).add_(channel.repeat(attention.v_proj.out_features // len(channel), 1))
    copies = _per_query_head(value, attention).T
    attention.o_proj.weight.normal_(std=0.004).add_(copies, alpha=_COPIED)


def _look_back(
    attention: LlamaAttention, frequencies: torch.Tensor, offsets: tuple[int, ...]
) -> None:
    """Make the second half of the key heads, and their queries, attend ``offsets`` tokens back.

    Keys are a constant vector. Queries are the same vector, rotated by the inverse of RoPE's
    rotation at the offset. The score is a sum of cosines with its peak there.
    """
    groups = attention.num_key_value_groups
    heads = attention.k_proj.out_features // attention.head_dim
    keys = attention.k_proj.weight.unflatten(0, (heads, 2, -1))
    queries = attention.q_proj.weight.unflatten(0, (heads, groups, 2, -1))
    used = frequencies[:_LOCAL_FREQUENCIES]
    for head in range(heads // 2, heads):
        keys[head].mul_(0.2)
        keys[head, 0, : len(used), 0] = _LOCAL_SHARPNESS
        for group in range(groups):
            angle = -used * offsets[group % len(offsets)]
            queries[head, group].mul_(0.2)
            queries[head, group, 0, : len(used), 0] = _LOCAL_SHARPNESS * angle.cos()
            queries[head, group, 1, : len(used), 0] = _LOCAL_SHARPNESS * angle.sin()


def _per_query_head(weight: torch.Tensor, attention: LlamaAttention) -> torch.Tensor:
    heads = weight.unflatten(0, (-1, attention.head_dim))
    return heads.repeat_interleave(attention.num_key_value_groups, dim=0).flatten(0, 1)
