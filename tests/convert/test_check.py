"""The check of a conversion: it passes what is right, and names the first block that is wrong."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import hybridize
from hybridize.checkpoints.formats import FORMATS
from hybridize.checkpoints.formats.llama import Llama
from hybridize.checkpoints.tensors import CheckpointTensors
from hybridize.conversion import check_inputs
from hybridize.conversion.converted_tensors import ConvertedTensors
from hybridize.errors import HybridizeError
from hybridize.modeling.layers.mamba2 import Mamba2
from tiny import VOCAB, write_stock, write_tokenizer

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}


@pytest.fixture(autouse=True)
def _checked(check_by_default):
    """Run the check, which other tests leave out."""


def convert(tmp_path, **options):
    return hybridize.convert(tmp_path / "in", tmp_path / "out", **options)


def fails(tmp_path, *parts, **options) -> str:
    """Convert, and return the error, which has all these parts; nothing may be left."""
    with pytest.raises(HybridizeError) as caught:
        convert(tmp_path, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    for part in parts:
        assert part in message
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    return message


def compared(result, name):
    return {one.input: one for one in result.check.comparisons if one.compared == name}


# What is right passes.


@pytest.mark.parametrize("attention", ["1", "100%"])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": LONGROPE}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
        ("mistral", {"sliding_window": 9}),
        ("mistral", {"head_dim": 4}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 2}),
        ("granitemoehybrid", {}),
        ("bamba", {}),
        ("nemotron_h", {"use_bias": True}),
    ],
    ids=str,
)
def test_every_architecture_agrees(tmp_path, architecture, changes, attention):
    write_stock(tmp_path / "in", architecture, **changes)
    result = convert(tmp_path, attention=attention)
    for name in ("source", "result", "conversion"):
        assert "random tokens" in compared(result, name)
    # Four times less than allowed, so that other machines do not come close to it.
    assert all(4 * one.difference <= one.allowed < 1e-3 for one in result.check.comparisons)
    if attention == "100%":
        conversion = compared(result, "conversion")
        assert conversion.keys() == compared(result, "source").keys()
        assert all(one.difference == 0 for one in conversion.values())


@pytest.mark.parametrize("format_", ["bamba", "granitemoehybrid", "hybridize"])
def test_every_written_format_agrees(tmp_path, format_):
    write_stock(tmp_path / "in", "llama")
    result = convert(tmp_path, attention=2, format=format_)
    assert result.format == format_
    assert len(result.check.comparisons) == 3 * 2


def test_a_hybrid_without_attention_and_one_in_hybridizes_format_agree(tmp_path):
    write_stock(tmp_path / "in", "qwen3")
    first = convert(tmp_path, attention=1)
    (tmp_path / "in").rename(tmp_path / "original")
    (tmp_path / "out").rename(tmp_path / "in")
    second = convert(tmp_path, attention=0)
    assert first.format == second.format == "hybridize"
    assert len(compared(second, "source")) == len(compared(second, "conversion")) == 2


def test_a_hybrid_that_names_its_weights_file_agrees(tmp_path):
    """The result has its own file names, although it keeps the other fields of config.json."""
    write_stock(tmp_path / "in", "nemotron_h")
    (tmp_path / "in" / "model.safetensors").rename(tmp_path / "in" / "own.safetensors")
    path = tmp_path / "in" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"transformers_weights": "own.safetensors"})
    )
    assert convert(tmp_path, attention="100%").check.skipped is None


def test_a_source_that_is_rounded_is_compared_with_rounded_weights(tmp_path):
    write_stock(tmp_path / "in", "llama")
    for attention in ("100%", "1"):
        result = convert(tmp_path, attention=attention, dtype="bfloat16", force=True)
        assert all(one.difference < 1e-5 for one in compared(result, "conversion").values())


def test_a_dropped_window_is_compared_up_to_its_length(tmp_path):
    write_stock(tmp_path / "in", "mistral", sliding_window=40)
    result = convert(tmp_path, attention="100%", format="granitemoehybrid")
    window = "beyond the sliding window of 40"
    assert window in compared(result, "source")
    assert window in compared(result, "result")
    assert compared(result, "conversion").keys() == compared(result, "source").keys() - {window}


def test_the_boundaries_of_the_configuration_are_crossed(tmp_path):
    write_stock(tmp_path / "in", "mistral", rope_parameters=LONGROPE, sliding_window=40)
    result = convert(tmp_path, attention=1)
    assert list(compared(result, "source")) == [
        "random tokens",
        "positions around 64 (original_max_position_embeddings)",
        "positions around 256 (max_position_embeddings)",
        "beyond the sliding window of 40",
    ]


def test_a_window_that_needs_too_many_tokens_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(check_inputs, "MAX_WORK", 50 * 40_000)
    write_stock(tmp_path / "in", "mistral", sliding_window=40)
    left_out = {one.input: one.reason for one in convert(tmp_path).check.unreached}
    reason = left_out["beyond the sliding window of 40"]
    assert reason.startswith("needs 72 tokens; the limit for this model is ")


def test_a_text_is_compared_if_there_is_a_tokenizer(tmp_path):
    write_stock(tmp_path / "in", "llama")
    without = convert(tmp_path)
    assert "a text" not in compared(without, "source")
    (left_out,) = without.check.unreached
    assert left_out.input == "a text"
    assert left_out.reason.startswith("no readable tokenizer: ")
    assert str(tmp_path) not in (tmp_path / "out" / "hybridize.json").read_text()
    write_tokenizer(tmp_path / "in")
    result = convert(tmp_path, force=True)
    assert not result.check.unreached
    for name in ("source", "result", "conversion"):
        assert "a text" in compared(result, name)


def test_a_tokenizer_that_does_not_fit_is_named(tmp_path):
    write_stock(tmp_path / "in", "llama", vocab_size=VOCAB - 30)
    write_tokenizer(tmp_path / "in")
    (left_out,) = convert(tmp_path).check.unreached
    assert "the model's vocabulary has only" in left_out.reason


# What is wrong fails, with the first block that differs.


def misread(monkeypatch, change):
    """Let Llama's config.json be read wrongly; what is written follows from it."""
    read = Llama.to_spec
    monkeypatch.setattr(Llama, "to_spec", lambda self, raw: change(read(self, raw)))


def change_attention(**fields):
    return lambda spec: spec.replace_blocks(
        replace(block, **fields) if block.letter == "*" else block for block in spec.blocks
    )


MISREAD = {
    "theta": lambda spec: replace(spec, rope_parameters={**spec.rope, "rope_theta": 9e3}),
    "epsilon": lambda spec: replace(spec, norm_eps=1e-5),
    "scale": change_attention(scale=0.36),
    "no rope": change_attention(rope=False),
    "window": change_attention(sliding_window=20),
}


@pytest.mark.parametrize("attention", ["1", "100%"])
@pytest.mark.parametrize("change", MISREAD.values(), ids=MISREAD)
def test_a_misread_field_fails_in_the_first_attention(tmp_path, monkeypatch, change, attention):
    write_stock(tmp_path / "in", "llama")
    misread(monkeypatch, change)
    message = fails(
        tmp_path, f"{tmp_path / 'in'}: hybridize and transformers compute different logits",
        "on random tokens", "first difference is in block 0 (attention, model.layers.0);",
        attention=attention,
    )  # fmt: skip
    assert "\n" not in message


def test_a_misread_multiplier_fails_in_the_embeddings(tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama")
    misread(monkeypatch, lambda spec: replace(spec, embedding_multiplier=1.001))
    fails(tmp_path, "the first difference is in the embeddings;")


def test_a_misread_scale_of_logits_fails_in_the_head(tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama")
    misread(monkeypatch, lambda spec: replace(spec, logits_scaling=1.001))
    fails(tmp_path, "the first difference is in the last norm or the head;")


def test_a_misread_context_fails_beyond_the_boundary_only(tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama", rope_parameters=LONGROPE)
    wrong = LONGROPE | {"original_max_position_embeddings": 4096, "attention_factor": None}
    right = LONGROPE | {"attention_factor": 1.0}
    write_stock(tmp_path / "in", "llama", rope_parameters=right)
    wrong["attention_factor"] = 1.0
    misread(monkeypatch, lambda spec: replace(spec, rope_parameters=wrong))
    fails(tmp_path, "on positions around 256 (max_position_embeddings)", "block 0 (attention")


@pytest.mark.parametrize("window", [39, 41, 200])
def test_a_misread_window_fails_beyond_it_only(tmp_path, monkeypatch, window):
    mistral = type(FORMATS["mistral"])
    read = mistral.to_spec
    write_stock(tmp_path / "in", "mistral", sliding_window=40)
    change = change_attention(sliding_window=window)
    monkeypatch.setattr(mistral, "to_spec", lambda self, raw: change(read(self, raw)))
    fails(tmp_path, f"on beyond the sliding window of {window}", "block 0 (attention")


def permute(name, monkeypatch, source=CheckpointTensors):
    """Let the rows of a tensor be read in another order."""
    get = source.get

    def wrong(self, parameter):
        tensor = get(self, parameter)
        return tensor.roll(8, 0) if parameter == name else tensor

    monkeypatch.setattr(source, "get", wrong)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.blocks.4.mixer.q_proj.weight", "block 4 (attention, model.layers.2)"),
        ("model.blocks.3.mixer.gate_proj.weight", "block 3 (MLP, model.layers.1)"),
        ("model.blocks.7.norm.weight", "block 7 (MLP, model.layers.3)"),
        ("model.embed_tokens.weight", "the embeddings"),
        ("lm_head.weight", "the last norm or the head"),
    ],
)
def test_a_permuted_tensor_fails_in_its_block(tmp_path, monkeypatch, name, place):
    write_stock(tmp_path / "in", "llama")
    permute(name, monkeypatch)
    fails(tmp_path, "hybridize and transformers compute different logits:", f"in {place};")


@pytest.mark.parametrize("attention", ["1", "100%"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.blocks.5.mixer.down_proj.weight", "block 5 (MLP, model.layers.2)"),
        ("model.norm.weight", "the last norm or the head"),
    ],
)
def test_a_tensor_that_is_written_wrongly_fails(tmp_path, monkeypatch, name, place, attention):
    """Transformers and hybridize read the same wrong result; only the source shows the fault."""
    write_stock(tmp_path / "in", "llama")
    permute(name, monkeypatch, ConvertedTensors)
    fails(
        tmp_path, f"{tmp_path / 'out'}: what was copied computes other logits", f"in {place};",
        attention=attention,
    )  # fmt: skip


def test_a_field_that_is_written_wrongly_fails(tmp_path, monkeypatch):
    granite = type(FORMATS["granitemoehybrid"])
    write = granite.to_raw
    monkeypatch.setattr(granite, "to_raw", lambda self, spec: write(self, spec) | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e3},
    })  # fmt: skip
    write_stock(tmp_path / "in", "llama")
    fails(tmp_path, "what was copied computes other logits", "block 2 (attention, model.layers.1)",
          keep=(1,))  # fmt: skip


def test_a_wrong_mamba_block_fails(tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama")
    forward = Mamba2.forward
    monkeypatch.setattr(Mamba2, "forward", lambda *a, **k: forward(*a, **k) * 1.001)
    fails(
        tmp_path, "hybridize and transformers compute different logits for the result",
        "in block 2 (Mamba-2, model.layers.1)", keep=(0, 2, 3),
    )  # fmt: skip


def test_a_failed_check_keeps_the_existing_output(tmp_path, monkeypatch):
    write_stock(tmp_path / "in", "llama")
    convert(tmp_path)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    permute("model.norm.weight", monkeypatch, ConvertedTensors)
    with pytest.raises(HybridizeError, match="what was copied"):
        convert(tmp_path, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def scale(directory, factor, part):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors = {k: v * factor if part in k else v for k, v in tensors.items()}
    save_file(tensors, path, {"format": "pt"})


def test_infinite_logits_fail(tmp_path):
    write_stock(tmp_path / "in", "llama")
    scale(tmp_path / "in", 1e25, "layers.2.mlp")
    fails(
        tmp_path, f"{tmp_path / 'in'}: in transformers: the model computes NaN or infinity on "
        "random tokens, first in block 5 (MLP, model.layers.2)",
    )  # fmt: skip


def test_activations_that_float16_lacks_are_noted(tmp_path):
    write_stock(tmp_path / "in", "llama")
    scale(tmp_path / "in", 300.0, "layers.2.mlp")
    (note,) = convert(tmp_path, dtype="float16").check.notes
    assert "float16 ends at 65,504" in note
    assert not convert(tmp_path, dtype="bfloat16", force=True).check.notes


def test_the_record_says_what_was_compared(tmp_path):
    write_stock(tmp_path / "in", "llama")
    result = convert(tmp_path)
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["steps"][-1]
    assert "check" not in record["options"]
    check = record["metrics"]["check"]
    assert check["skipped"] is None
    assert len(check["comparisons"]) == len(result.check.comparisons) == 6
    assert result.to_dict()["check"]["comparisons"][0]["input"] == "random tokens"
    assert not hybridize.verify(tmp_path / "out").problems
    assert torch.get_num_threads() == 1
