"""The first values of the bundled checkpoint's training."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tools.bundled_checkpoint.initialize import initialize_for_recall

LENGTH = 24


@pytest.fixture(scope="module")
def attentions() -> tuple[torch.Tensor, ...]:
    """The attention maps ``[heads, query, key]`` of a fresh model that reads a text twice."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    initialize_for_recall(model)
    tokens = torch.randperm(200)[:LENGTH].repeat(2)[None]
    with torch.no_grad():
        return tuple(maps[0] for maps in model(tokens, output_attentions=True).attentions)


# The residual stream of the deepest layer also contains the copies of two earlier layers. It
# matches less well.
@pytest.mark.parametrize(("layer", "factor"), [(0, 4), (1, 4), (2, 2)])
@pytest.mark.parametrize("head", [0, 1])
def test_matching_heads_find_the_token_again(attentions, layer, head, factor) -> None:  # type: ignore[no-untyped-def]
    maps = attentions[layer][head]
    again = torch.stack([maps[LENGTH + i, i] for i in range(LENGTH)]).mean()
    others = torch.stack(
        [maps[LENGTH + i, [k for k in range(LENGTH) if k != i]].mean() for i in range(LENGTH)]
    ).mean()
    assert again > factor * others


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("head", [2, 3])
def test_local_heads_look_back_by_their_offset(attentions, layer: int, head: int) -> None:  # type: ignore[no-untyped-def]
    offset = 1 if head == 2 else 2 + layer
    maps = attentions[layer][head]
    shares = [maps.diagonal(-back)[LENGTH:].mean() for back in range(8)]
    assert max(range(8), key=shares.__getitem__) == offset
    assert shares[offset] > 0.5
