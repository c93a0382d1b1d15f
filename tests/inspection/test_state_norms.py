"""`inspect --states` against formulas, a plain recurrence and eager attention."""

import json
import math
import shutil

import pytest
import torch

from hybridize.__main__ import main
from hybridize.inspection.state_norms import measure_states
from hybrids import MIXED, build
from tiny import tokens, write_stock, write_tokenizer


@pytest.fixture(scope="module")
def model():
    return build(MIXED)


@pytest.fixture(scope="module")
def ids():
    return tokens(1, 70)


@torch.no_grad()
def test_norms_equal_those_of_the_cached_states(model, ids):
    seen = measure_states(model, ids)
    assert seen.positions[-1] == seen.tokens == 70
    assert [memory.block for memory in seen.mamba] == [0, 4]
    for index in (0, 10, -1):
        cache = model(ids[:, : seen.positions[index]], use_cache=True).cache
        for memory in seen.mamba:
            state = cache.layers[memory.block].recurrent_states[0]
            assert memory.norms[index] == pytest.approx(float(state.norm()), rel=1e-6)


@torch.no_grad()
def test_memory_length_follows_from_the_decay(ids):
    model = build(MIXED)
    for index in (0, 4):
        mixer = model.model.blocks[index].mixer
        mixer.in_proj.weight[-mixer.sizes.num_heads :] = 0
        if mixer.in_proj.bias is not None:
            mixer.in_proj.bias[-mixer.sizes.num_heads :] = 0
    for memory in measure_states(model, ids).mamba:
        mixer = model.model.blocks[memory.block].mixer
        low, high = mixer.sizes.dt_limit
        for head, length in enumerate(memory.lengths):
            dt = min(max(math.log1p(math.exp(mixer.dt_bias[head])), low), high)
            decay = math.exp(-dt * math.exp(mixer.A_log[head]))
            assert decay**length == pytest.approx(1 / math.e, rel=1e-6)


@torch.no_grad()
def test_attention_spans_equal_those_of_eager_attention(ids):
    from hybridize.modeling import model as module

    model = build(MIXED)
    model.config._attn_implementation = "eager"
    seen, expected = measure_states(model, ids), {}

    def note(mixer, *arguments, **options):
        y, weights = eager(mixer, *arguments, **options)
        expected[mixer.layer_idx] = weights[0]
        return y, weights

    eager = module.eager_attention_forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "eager_attention_forward", note)
        model(ids, use_cache=False)
    assert [span.block for span in seen.attention] == sorted(expected) == [2, 5, 7]
    for span in seen.attention:
        weights = expected[span.block]
        distances, shares = [], [0.0] * len(span.shares)
        for head in weights:
            total = 0.0
            for query, row in enumerate(head.tolist()):
                for key, weight in enumerate(row[: query + 1]):
                    total += weight * (query - key)
                    shares[(query - key).bit_length()] += weight / len(head) / len(weights)
            distances.append(total / len(head))
        assert span.distances == pytest.approx(distances, rel=1e-6)
        assert span.shares == pytest.approx(shares, rel=1e-5, abs=1e-7)
        assert sum(span.shares) == pytest.approx(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("states") / "model"
    write_stock(directory, "granitemoehybrid")
    write_tokenizer(directory)
    return directory


def test_the_command_prints_tables_and_plots(capsys, checkpoint, tmp_path):
    text, plot = tmp_path / "text.txt", tmp_path / "states.png"
    text.write_text("Hello you there " * 40)
    command = ["inspect", str(checkpoint), "--states", str(text)]
    capsys.readouterr()
    assert main([*command, "--plot", str(plot), "--states-tokens", "90"]) == 0
    out = capsys.readouterr().out
    assert "over 90 tokens" in out
    assert "farthest" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--json"]) == 0
    states = json.loads(capsys.readouterr().out)["states"]
    assert states["tokens"] == 256  # the model's context
    assert len(states["mamba"]) == 2
    assert main([*command, "--plot", str(plot)]) == 2
    assert "--force" in capsys.readouterr().err


def test_an_unusable_text_is_refused_in_one_line(capsys, checkpoint, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "empty").touch()
    for name, words in (
        ("missing", "cannot be read"),
        ("bytes", "not UTF-8"),
        ("empty", "fewer than two tokens"),
    ):
        capsys.readouterr()
        assert main(["inspect", str(checkpoint), "--states", str(tmp_path / name)]) == 2
        out, err = capsys.readouterr()
        assert words in err
        assert (out, err.count("\n")) == ("", 1)
    assert main(["inspect", str(checkpoint), "--plot", "x.png"]) == 2
    assert "--states FILE" in capsys.readouterr().err


def test_a_token_beyond_the_vocabulary_is_named(capsys, checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {word: n + 999 for word, n in tokenizer["model"]["vocab"].items()}
    path.write_text(json.dumps(tokenizer))
    (tmp_path / "text").write_text("some words")
    assert main(["inspect", str(copy), "--states", str(tmp_path / "text")]) == 2
    assert "vocabulary has only" in capsys.readouterr().err
