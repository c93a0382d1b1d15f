"""Every format against transformers' own code: logits after reading, tensors after writing."""

import ast
import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from hybridize import convert
from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import FORMATS, CannotStoreError, read_config
from hybridize.checkpoints.formats.modeling_file import modeling_source
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.tensors import AdaptedTensors, CheckpointTensors
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes, MLPSizes
from hybridize.modeling.model_spec import ModelSpec, parameter_shapes
from tiny import ARCHITECTURES, TRANSFORMERS, stock_config, tokens, write_stock

ROPES = {
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 4.0},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}
VARIANTS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 1, "hidden_act": "gelu"}),
    *[
        ("llama", {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **rope}})
        for kind, rope in ROPES.items()
    ],
    ("mistral", {}),
    ("mistral", {"sliding_window": 9}),
    ("mistral", {"head_dim": 4}),
    ("mistral", {"head_dim": 12}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
]
HYBRIDS = [
    ("granitemoehybrid", {}),
    ("granitemoehybrid", {"position_embedding_type": None, "tie_word_embeddings": True}),
    ("granitemoehybrid", {"mamba_proj_bias": True, "mamba_conv_bias": False}),
    ("granitemoehybrid", {"mamba_n_groups": 1, "mamba_d_conv": 2, "attention_bias": True}),
    ("bamba", {}),
    ("bamba", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0}}),
    ("bamba", {"attention_bias": True, "mlp_bias": False, "mamba_proj_bias": True}),
    ("nemotron_h", {}),
    ("nemotron_h", {"use_bias": True, "mlp_bias": True, "time_step_min": 0.05}),
    ("nemotron_h", {"layers_block_type": ["linear_attention", "full_attention", "mlp"]}),
    ("mamba2", {}),
    ("mamba2", {"tie_word_embeddings": True, "use_bias": True, "residual_in_fp32": False}),
    ("mamba2", {"time_step_limit": (0.01, 0.2)}),
]


def variant_id(value):
    return value if isinstance(value, str) else ",".join(map(str, value)) or "plain"


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "changes"), VARIANTS, ids=variant_id)
def test_logits_of_transformer_models_are_bit_equal(tmp_path, architecture, changes):
    stock = write_stock(tmp_path, architecture, **changes)
    ids = tokens(2, 90)
    assert torch.equal(load_model(tmp_path)(ids).logits, stock(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "granitemoehybrid"])
def test_tied_weights_may_be_stored_under_either_name(tmp_path, architecture):
    source, output = tmp_path / "source", tmp_path / "output"
    stock = write_stock(source, architecture, tie_word_embeddings=True)
    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path, {"format": "pt"})
    convert(source, output, attention="100%")
    ids = tokens(2, 30)
    for directory in (source, output):
        torch.testing.assert_close(load_model(directory)(ids).logits, stock(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("inside", [None, 64])
@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "longrope"), ("mistral", "llama3"), ("qwen3", "yarn")]
)
def test_original_length_beside_the_rope_parameters(tmp_path, architecture, kind, inside):
    rope = {"rope_type": kind, "rope_theta": 1e4, **ROPES[kind]}
    write_stock(tmp_path, architecture, rope_parameters=rope)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw["original_max_position_embeddings"] = 24
    raw["rope_parameters"]["original_max_position_embeddings"] = inside
    if inside is None:
        del raw["rope_parameters"]["original_max_position_embeddings"]
    path.write_text(json.dumps(raw))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = tokens(2, 90)
    assert torch.equal(load_model(tmp_path)(ids).logits, stock(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "changes"), HYBRIDS, ids=variant_id)
def test_logits_of_hybrids_equal_those_of_transformers(tmp_path, architecture, changes):
    stock = write_stock(tmp_path, architecture, **changes)
    model = load_model(tmp_path)
    ids = tokens(2, 70)
    want = stock(ids).logits
    assert want.std() > 0.1  # otherwise any model would pass
    torch.testing.assert_close(model(ids).logits, want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "changes"), VARIANTS + HYBRIDS, ids=variant_id)
def test_written_checkpoint_equals_the_original(tmp_path, architecture, changes):
    """All tensors are bit-equal, and transformers reads config.json as the same model."""
    stock = write_stock(tmp_path, architecture, **changes)
    with CheckpointReader(tmp_path) as reader:
        format_, config = read_config(reader)
        fit = format_.fit(config)
        assert fit.exact
        assert fit.spec.blocks == config.blocks
        tensors = AdaptedTensors(CheckpointTensors(reader, format_, config), config, fit.spec)
        written = {
            entry.disk: torch.cat([tensors.get(name) for name in entry.parameters])
            for entry in format_.tensor_map(fit.spec)
        }
        raw = format_.to_raw(fit.spec)
    original = load_file(tmp_path / "model.safetensors")
    assert written.keys() == original.keys()
    assert all(torch.equal(written[name], original[name]) for name in original)
    (tmp_path / "config.json").write_text(json.dumps(raw, allow_nan=False))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens(2, 60)
    assert torch.equal(again(ids).logits, stock(ids).logits)


def test_every_architecture_is_covered():
    tested = {name for name, _ in VARIANTS + HYBRIDS}
    assert tested | {"hybridize"} == set(FORMATS) == {*ARCHITECTURES, "hybridize"}


def hybrid(attention: AttentionSizes, mlp: MLPSizes | None = None, **fields) -> ModelSpec:
    mamba = MambaSizes(4, 8, 4, 8)
    blocks = [mamba, mlp or MLPSizes(48), attention, mlp or MLPSizes(48)]
    return ModelSpec(blocks, vocab_size=64, hidden_size=32, **fields)


PLAIN = AttentionSizes(4, 2, 8)


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("granitemoehybrid", hybrid(AttentionSizes(4, 2, 8, qk_norm=True)), "query/key norm"),
        ("granitemoehybrid", hybrid(PLAIN, MLPSizes(48, bias=True)), "no MLP biases"),
        ("granitemoehybrid", hybrid(PLAIN, MLPSizes(48, "gelu")), "one activation"),
        ("granitemoehybrid", hybrid(PLAIN, MLPSizes(48, gated=False)), "gated"),
        ("granitemoehybrid", hybrid(PLAIN, residual_in_fp32=True), "float32"),
        ("bamba", hybrid(PLAIN, logits_scaling=2.0), "no multipliers"),
        ("bamba", hybrid(AttentionSizes(4, 2, 8, rope=False)), "RoPE"),
        ("bamba", hybrid(AttentionSizes(4, 2, 8, scale=0.1)), "scales"),
        ("nemotron_h", hybrid(PLAIN), "no RoPE"),
        ("mamba2", hybrid(PLAIN), "Mamba-2 blocks only"),
        ("llama", hybrid(PLAIN), "no Mamba-2"),
    ],
)
def test_a_format_says_what_it_cannot_store(name, config, reason):
    with pytest.raises(CannotStoreError, match=reason):
        FORMATS[name].fit(config)


@pytest.mark.parametrize("name", ["granitemoehybrid", "bamba"])
def test_stock_hybrids_need_equal_blocks_and_one_attention_block(name):
    blocks = [PLAIN, MLPSizes(48), PLAIN, MLPSizes(40)]
    config = ModelSpec(blocks, vocab_size=64, hidden_size=32)
    with pytest.raises(CannotStoreError, match="MLP blocks must all have the same sizes"):
        FORMATS[name].fit(config)
    config = ModelSpec([MambaSizes(4, 8, 4, 8), MLPSizes(48)], vocab_size=64, hidden_size=32)
    with pytest.raises(CannotStoreError, match="at least one attention block"):
        FORMATS[name].fit(config)


def test_dropping_a_window_is_exact_only_if_it_covers_the_context():
    inside = hybrid(AttentionSizes(4, 2, 8, sliding_window=64), max_position_embeddings=128)
    fit = FORMATS["granitemoehybrid"].fit(inside)
    assert not fit.exact
    assert "64 tokens" in fit.notes[0]
    beyond = hybrid(AttentionSizes(4, 2, 8, sliding_window=128), max_position_embeddings=128)
    assert FORMATS["granitemoehybrid"].fit(beyond).exact


class TestConfigsForEngines:
    """The details that vLLM, SGLang or llama.cpp depend on; see docs/formats.md."""

    def raw(self, name="granitemoehybrid", config=None):
        config = config or hybrid(
            PLAIN, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
        )
        return FORMATS[name].to_raw(FORMATS[name].fit(config).spec)

    def test_granite_layer_types_have_the_older_names(self):
        assert self.raw()["layer_types"] == ["mamba", "attention"]

    def test_rope_is_written_in_both_spellings(self):
        raw = self.raw()
        assert raw["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}
        assert raw["rope_theta"] == 5e5
        assert raw["rope_scaling"] is None
        scaled = {"rope_type": "llama3", "rope_theta": 5e5, **ROPES["llama3"]}
        raw = self.raw(config=hybrid(PLAIN, rope_parameters=scaled))
        assert raw["rope_theta"] == 5e5
        assert raw["rope_scaling"] == {"rope_type": "llama3", **ROPES["llama3"]}

    @pytest.mark.parametrize("name", ["granitemoehybrid", "bamba"])
    def test_time_step_limit_and_derivable_head_dim_are_not_written(self, name):
        raw = self.raw(name)
        assert "time_step_limit" not in raw
        assert "head_dim" not in raw

    def test_head_dim_is_written_if_it_cannot_be_derived(self):
        raw = self.raw(config=hybrid(AttentionSizes(4, 2, 12)))
        assert raw["head_dim"] == 12

    @pytest.mark.parametrize("name", ["granitemoehybrid", "bamba"])
    def test_expand_is_a_whole_number(self, name):
        raw = self.raw(name)
        assert isinstance(raw["mamba_expand"], int)
        assert (
            raw["mamba_expand"] * raw["hidden_size"] == raw["mamba_n_heads"] * raw["mamba_d_head"]
        )

    def test_a_width_that_is_no_multiple_of_the_hidden_size_is_refused(self):
        blocks = [MambaSizes(3, 8, 3, 8), MLPSizes(48), PLAIN, MLPSizes(48)]
        config = ModelSpec(blocks, vocab_size=64, hidden_size=32)
        with pytest.raises(CannotStoreError, match="24 is not a multiple of 32"):
            FORMATS["granitemoehybrid"].fit(config)

    def test_bamba_is_the_second_architecture_for_llama_cpp(self):
        names = self.raw()["architectures"]
        assert names == ["GraniteMoeHybridForCausalLM", "BambaForCausalLM"]

    def test_granite_has_no_experts_and_neutral_multipliers(self):
        raw = self.raw()
        assert raw["num_local_experts"] == raw["num_experts_per_tok"] == 0
        assert raw["position_embedding_type"] == "rope"
        assert raw["attention_multiplier"] == 8**-0.5
        for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
            assert raw[name] == 1.0

    def test_bamba_rotates_whole_heads(self):
        assert self.raw("bamba")["rope_parameters"]["partial_rotary_factor"] == 1.0

    def test_configs_have_no_special_floats(self):
        for name in ("granitemoehybrid", "bamba"):
            text = json.dumps(self.raw(name), allow_nan=False)
            assert "__float__" not in text

    def test_nemotron_layers_are_written_in_both_spellings(self, tmp_path):
        write_stock(tmp_path, "nemotron_h")
        with CheckpointReader(tmp_path) as reader:
            format_, config = read_config(reader)
        raw = format_.to_raw(config)
        assert raw["hybrid_override_pattern"] == "M-*M-" == config.layout
        assert len(raw["layers_block_type"]) == 5


class TestBadConfigurations:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"model_type": "gpt_j"}, "'gpt_j' is not known; known are bamba, .*qwen3"),
            ({"model_type": None}, "None is not known"),
            ({"num_attention_heads": "four"}, "num_attention_heads"),
            ({"num_key_value_heads": 3}, "not a multiple of 3 KV heads"),
            ({"hidden_act": "cosine"}, "hidden_act|cosine"),
            ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ],
    )
    def test_the_error_for_a_bad_field_names_the_file(self, tmp_path, changes, reason):
        write_stock(tmp_path, "llama")
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(InputError, match=reason) as caught:
            load_model(tmp_path)
        assert "config.json" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_mixtures_of_experts_are_refused(self, tmp_path):
        write_stock(tmp_path, "granitemoehybrid")
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_local_experts": 4}))
        with pytest.raises(InputError, match="mixtures of experts"):
            load_model(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"num_hidden_layers": 5}, "'model.layers.4.input_layernorm.weight' is missing"),
            ({"num_hidden_layers": 3}, "'model.layers.3.* is not part of"),
            ({"intermediate_size": 40}, r"shape \[64, 32\]; config.json implies \[40, 32\]"),
        ],
    )
    def test_tensors_that_do_not_fit_are_named(self, tmp_path, changes, reason):
        write_stock(tmp_path, "llama")
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(InputError, match=reason):
            load_model(tmp_path)


def test_the_modeling_file_defines_every_name_once():
    """No name is defined twice, and every name that is used is defined."""
    source = modeling_source()
    nodes = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    names = [node.name for node in nodes]
    assert sorted(set(names)) == sorted(names)
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    found = subprocess.run(ruff, input=source, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@torch.no_grad()
def test_the_modeling_file_works_without_hybridize(tmp_path):
    """A process without hybridize opens the checkpoint with trust_remote_code."""
    from hybridize.conversion.convert import convert

    write_stock(tmp_path / "source", "qwen3")
    convert(tmp_path / "source", tmp_path / "out", attention=2, format="hybridize")
    ids = tokens(1, 30)
    torch.save(ids, tmp_path / "ids.pt")
    script = f"""
import sys
sys.modules["hybridize"] = None  # as if it were not installed
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
ids = torch.load({str(tmp_path / "ids.pt")!r})
with torch.no_grad():
    torch.save(model.eval()(ids).logits, {str(tmp_path / "logits.pt")!r})
    model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    logits = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(logits, load_model(tmp_path / "out")(ids).logits, rtol=0, atol=1e-6)


def test_rope_and_scale_have_the_usual_defaults():
    config = hybrid(PLAIN)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert math.isclose(PLAIN.head_dim**-0.5, 0.3535533905932738)


def test_rows_of_a_stacked_tensor_are_the_sum_of_its_parts():
    config = hybrid(PLAIN)
    entries = {e.disk: e for e in FORMATS["granitemoehybrid"].tensor_map(config)}
    stacked = entries["model.layers.0.shared_mlp.input_linear.weight"]
    assert stacked.shape == (96, 32)
    assert stacked.rows == (48, 48)
    total = sum(math.prod(entry.shape) for entry in entries.values())
    assert total == sum(math.prod(shape) for shape in parameter_shapes(config).values())


def test_stock_configs_have_the_right_model_type():
    for name in (*TRANSFORMERS, "bamba"):
        assert AutoConfig.for_model(name).model_type == stock_config(name).model_type
