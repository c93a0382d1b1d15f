"""Fields of a config.json that no format reads: ignored, ignored with a note, or refused."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, GenerationConfig

from hybridize import convert, inspect
from hybridize.__main__ import main
from hybridize.checkpoints.formats import FORMATS, config_from_json
from hybridize.checkpoints.formats.known_fields import NO_INFLUENCE, READ_BY_ALL, REQUIRED
from hybridize.checkpoints.formats.llama import Llama
from hybridize.checkpoints.formats.unknown_fields import check_fields, ignored_fields
from hybridize.console import console
from hybridize.errors import InputError
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.rope_parameters import ROPE_TYPES, rope_keys
from tiny import ARCHITECTURES, stock_config, write_stock


@pytest.fixture
def notes(monkeypatch) -> list[str]:
    """The notes that are printed."""
    found: list[str] = []
    monkeypatch.setattr(console, "note", found.append)
    return found


def raw_of(architecture: str, **changes):
    return json.loads(stock_config(architecture).to_json_string(use_diff=False)) | changes


def read(tmp_path, architecture, **changes):
    return config_from_json(raw_of(architecture, **changes), tmp_path / "config.json")


def refusal(tmp_path, architecture, **changes) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, architecture, **changes)
    assert str(tmp_path / "config.json") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("model_type", FORMATS)
def test_tables_have_every_field_of_transformers(model_type):
    """So that no known field is judged by its name, and no light command imports transformers."""
    format_ = FORMATS[model_type]
    cls = HybridConfig if format_.own else CONFIG_MAPPING[model_type]
    known = {
        *format_.fields, *format_.also_read, *format_.no_influence, *format_.required,
        *NO_INFLUENCE, *READ_BY_ALL, *REQUIRED,
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(cls)} <= known


def test_tables_have_every_setting_of_generation():
    assert set(GenerationConfig._get_default_generation_params()) <= NO_INFLUENCE


def test_no_table_contradicts_another():
    for format_ in FORMATS.values():
        read_ = {*format_.fields, *format_.also_read} - {"initializer_range", "use_cache"}
        tokens = {name for name in read_ if name.endswith("_token_id")}
        assert not (read_ - tokens) & ({*format_.no_influence} | NO_INFLUENCE)
        assert not {*format_.required} & ({*format_.no_influence} | NO_INFLUENCE)


def test_rope_keys_are_those_that_transformers_accepts(caplog):
    """Transformers' validation warns about all other keys."""
    cls = CONFIG_MAPPING["llama"]
    values = {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "truncate": True}
    logger = sys.modules["transformers.modeling_rope_utils"].logger
    for kind in ROPE_TYPES:
        keys = rope_keys(kind) - {"type"}
        rope = {key: values.get(key, 2.0) for key in keys} | {"rope_type": kind}
        if "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] = 16
        messages: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logger, "warning", lambda text, *_, m=messages: m.append(text))
            cls(rope_parameters=rope)
            cls(rope_parameters=rope | {"unknown_key": 1})
        unrecognized = [text for text in messages if "Unrecognized" in text]
        # `factor` of this type is read, although the validation does not expect it.
        expected = 2 if kind == "proportional" else 1
        assert len(unrecognized) == expected, messages


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("is_causal", False),
        ("per_layer_config", {"0": {"rms_norm_eps": 0.5}}),
        ("attention_chunk_size", 8),
        ("text_config", {"hidden_size": 8}),
        ("configuration_files", ["config.4.0.0.json"]),
        ("is_encoder_decoder", True),
        ("default_theta", 500.0),  # a class attribute, which an instance can replace
        ("logit_softcap", 30.0),
        ("use_qk_norm", True),
        ("embedding_scale", 8),
        ("quantization", {"bits": 4, "group_size": 64}),
        ("sliding_window_pattern", 2),
    ],
)
def test_a_field_that_may_change_the_model_is_refused(tmp_path, architecture, name, value):
    text = refusal(tmp_path, architecture, **{name: value})
    assert f"{name} is {json.dumps(value)}" in text


@pytest.mark.parametrize(
    ("architecture", "name", "value"),
    [
        ("llama", "sliding_window", 8),
        ("qwen2", "attention_bias", True),
        ("mistral", "mlp_bias", True),
        ("llama", "attention_multiplier", 0.5),
        ("llama", "no_rope_layers", [0, 1]),
        ("nemotron_h", "attention_bias", True),
        ("granitemoehybrid", "normalization_function", "layernorm"),
        ("mamba2", "rms_norm", False),
        ("bamba", "attn_rotary_emb", 4),
    ],
)
def test_a_field_of_another_architecture_is_refused(tmp_path, architecture, name, value):
    assert name in refusal(tmp_path, architecture, **{name: value})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fields_without_influence_are_ignored(tmp_path, notes, architecture):
    _, plain = read(tmp_path, architecture)
    _, spec = read(
        tmp_path, architecture,
        initializer_range=0.5, output_attentions=True, architectures=["A"], num_labels=3,
        attn_implementation="sdpa", _name_or_path="x", temperature=0.5, unsloth_version="1",
        rope_interleaved=False, logit_softcap=None, logit_scale=1.0, num_experts=0, qk_norm=False,
    )  # fmt: skip
    assert dataclasses.replace(spec, initializer_range=plain.initializer_range) == plain
    assert notes == []


def test_fields_that_nobody_knows_are_noted_once(tmp_path, notes):
    read(tmp_path, "llama", run_name="seven", flavor={"a": 1})
    assert notes == [f"{tmp_path / 'config.json'}: ignored, as in transformers: run_name, flavor"]
    raw = raw_of("llama", run_name="seven", dreams=None)
    assert ignored_fields(FORMATS["llama"], raw) == ("run_name",)


def test_a_field_that_a_later_transformers_has_needs_its_default(tmp_path, monkeypatch):
    monkeypatch.setattr(Llama, "no_influence", ())
    monkeypatch.setattr(
        "hybridize.checkpoints.formats.unknown_fields.NO_INFLUENCE", frozenset(("architectures",))
    )
    raw = {"pretraining_tp": 1, "attention_dropout": 0}
    check_fields(Llama(), raw, tmp_path)
    for name, value in [("pretraining_tp", 2), ("pretraining_tp", True), ("output_attentions", 1)]:
        with pytest.raises(ValueError, match=f"{name} is .*transformers knows this field of llama"):
            check_fields(Llama(), raw | {name: value}, tmp_path)


@pytest.mark.parametrize(
    ("rope", "found"),
    [
        ({"type": "linear", "factor": 2.0, "low_freq_factor": 2.0}, "low_freq_factor"),
        ({"type": "yarn", "factor": 2.0, "finetuned": True}, "finetuned"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, "mrope_section"),
    ],
)
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_rope_keys_that_transformers_ignores_are_noted(tmp_path, notes, rope, found, place):
    read(tmp_path, "llama", **{"rope_parameters": None, place: rope})
    assert [text for text in notes if f"{found} of rope_type" in text] == notes
    assert notes


@pytest.mark.parametrize(
    ("rope", "found"),
    [
        ({"type": "dynamic", "factor": 2.0, "alpha": 1000}, "alpha 1000"),
        ({"type": "yarn", "factor": 2.0, "extrapolation_factor": 0.5}, "extrapolation_factor 0.5"),
        ({"type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
          "long_mscale": 1.2}, "long_mscale 1.2"),
    ],
)  # fmt: skip
def test_rope_keys_that_may_change_the_model_are_refused(tmp_path, rope, found):
    assert found in refusal(tmp_path, "qwen3", rope_parameters=None, rope_scaling=rope)
    key, _ = found.split()
    neutral = 1.0 if "factor" in key or "scal" in key else None
    read(tmp_path, "qwen3", rope_parameters=None, rope_scaling=rope | {key: neutral})


def test_own_code_of_a_checkpoint_is_noted_and_never_run(tmp_path, notes):
    (tmp_path / "modeling_x.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "modeling_x.Config", "AutoModelForCausalLM": "modeling_x.Model"}
    write_stock(tmp_path, "llama", auto_map=auto_map)
    inspect(tmp_path)
    assert any("modeling_x.Model" in text and "is not run" in text for text in notes)
    notes.clear()
    read(tmp_path, "llama", auto_map={"AutoTokenizer": ["tokenization_x.Tokenizer", None]})
    assert notes == []


def test_inspect_shows_the_ignored_fields(tmp_path, capsys):
    write_stock(tmp_path, "llama", run_name="seven")
    assert inspect(tmp_path).ignored_fields == ("run_name",)
    assert main(["inspect", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "ignored in config.json" in output.out
    assert "run_name" in output.out


REAL: dict[str, dict] = {
    "SmolLM2": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "is_llama_config": True, "num_attention_heads": 9, "num_hidden_layers": 2,
        "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "vocab_size": 49152,
    },
    "Qwen2.5": {
        "model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "max_window_layers": 21,
        "sliding_window": 32768, "use_sliding_window": False, "use_mrope": False,
        "rope_theta": 1000000.0,
    },
    "Granite 4": {
        "model_type": "granitemoehybrid", "hidden_size": 768, "num_attention_heads": 12,
        "num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "mamba_n_heads": 48,
        "mamba_d_head": 32, "num_local_experts": 0, "position_embedding_type": "nope",
        "normalization_function": "rmsnorm", "init_method": "mup", "router_aux_loss_coef": 0.01,
        "attention_multiplier": 0.0078125, "embedding_multiplier": 12, "logits_scaling": 3,
        "residual_multiplier": 0.246, "rope_scaling": None, "rope_theta": 10000,
    },
    "Nemotron-H": {
        "model_type": "nemotron_h", "hybrid_override_pattern": "M-*-", "num_hidden_layers": 4,
        "attention_head_dim": 128, "attention_bias": False, "rms_norm_eps": 1e-05,
        "mamba_proj_bias": False, "residual_in_fp32": False,
        "time_step_limit": [0.0, float("inf")], "use_mamba_kernels": True,
        "sliding_window": None, "rescale_prenorm_residual": True, "num_logits_to_keep": 1,
        "rope_theta": 10000, "hidden_dropout": 0.0, "expand": 2,
        "auto_map": {"AutoConfig": "configuration_nemotron_h.NemotronHConfig"},
    },
    "Mamba-Codestral": {
        "model_type": "mamba2", "norm_before_gate": True, "rms_norm": True,
        "num_hidden_layers": 2, "time_step_init_scheme": "random", "time_step_scale": 1.0,
        "intermediate_size": 8192, "emb_initializer_range": None,
        "rescale_prenorm_residual": False, "time_step_rank": 256,
    },
    "Bamba": {
        "model_type": "bamba", "attn_layer_indices": [1], "num_hidden_layers": 2,
        "partial_rotary_factor": 0.5, "mamba_chunk_size": 256, "z_loss_coefficient": 0.0001,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_published_configurations_are_read(tmp_path, notes, name):
    format_, _ = config_from_json(REAL[name], tmp_path / "config.json")
    assert ignored_fields(format_, REAL[name]) == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = st.text(max_size=12) | st.sampled_from(
    [*sorted(REQUIRED), "rope_scaling", "auto_map", "__init__"]
)


@settings(max_examples=200)
@given(st.sampled_from(ARCHITECTURES), st.dictionaries(NAMES, JSON, max_size=3))
def test_any_field_is_accepted_or_refused_in_one_line(architecture, extra):
    problem = ""
    with console.silence():
        try:
            check_fields(FORMATS[architecture], raw_of(architecture) | extra, Path("config.json"))
        except ValueError as error:
            problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("architecture", "name", "kinds"),
    [
        ("granitemoehybrid", "layers_block_type", ["mamba", "attention", "mamba"]),
        ("nemotron_h", "layer_types", ["mamba", "mlp", "attention", "mamba", "mlp"]),
    ],
)
def test_a_result_keeps_no_second_spelling_of_a_field(tmp_path, architecture, name, kinds):
    """Readers prefer this spelling, and after pruning it would describe the source."""
    source, output = tmp_path / "source", tmp_path / "output"
    write_stock(source, architecture)
    path = source / "config.json"
    raw = json.loads(path.read_text()) | {name: kinds, "run_name": "seven"}
    path.write_text(json.dumps(raw))
    convert(source, output, attention="100%")
    assert inspect(output).layout == inspect(source).layout
    written = json.loads((output / "config.json").read_text())
    assert written["run_name"] == "seven"
    assert name not in written
