"""Conversions of random checkpoints, opened with stock transformers."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import hybridize
from hybridize.checkpoints.load import load_model
from hybridize.errors import InputError
from hybridize.modeling.layers.sizes import AttentionSizes, MambaSizes
from tiny import tokens, write_stock

EXACT = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    ("mistral", {}),
    ("mistral", {"head_dim": 4, "num_attention_heads": 4, "num_key_value_heads": 2}),
    ("mistral", {"head_dim": 4, "num_attention_heads": 6, "num_key_value_heads": 3}),
    ("mistral", {"head_dim": 12}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
]


def stock(directory):
    """Open a checkpoint with transformers' own code, in float32."""
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False).eval()


@torch.no_grad()
@pytest.mark.parametrize("format_", ["granitemoehybrid", "bamba"])
@pytest.mark.parametrize(("architecture", "changes"), EXACT, ids=str)
def test_keeping_all_attention_changes_no_bit(tmp_path, architecture, changes, format_):
    original = write_stock(tmp_path / "in", architecture, **changes)
    hybridize.convert(tmp_path / "in", tmp_path / "out", attention="100%", format=format_)
    ids = tokens(3, 90)
    converted = stock(tmp_path / "out")
    assert type(converted).__name__.lower().startswith(format_)
    assert torch.equal(converted(ids).logits, original(ids).logits)


@torch.no_grad()
def test_keeping_all_attention_of_qwen3_changes_no_bit(tmp_path):
    original = write_stock(tmp_path / "in", "qwen3", attention_bias=True)
    result = hybridize.convert(tmp_path / "in", tmp_path / "out", attention="100%")
    assert result.format == "hybridize"
    ids = tokens(3, 90)
    assert torch.equal(stock(tmp_path / "out")(ids).logits, original(ids).logits)


def assert_stock_and_ours_agree(directory) -> None:
    """Compare full, cached and left-padded runs of both implementations."""
    theirs, ours = stock(directory), load_model(directory)
    ids = tokens(2, 40)
    want = theirs(ids).logits
    close = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(ours(ids).logits, want, **close)

    for model in (theirs, ours):
        out = model(ids[:, :20], use_cache=True)
        for t in range(20, 40):
            position = torch.full((2, 1), t)  # without it, stock Bamba counts from zero
            out = model(ids[:, t : t + 1], cache=out.cache, position_ids=position, use_cache=True)
            torch.testing.assert_close(out.logits[:, 0], want[:, t], **close)

        short = tokens(1, 25, seed=7)
        batch = torch.cat([ids[:1], torch.nn.functional.pad(short, (15, 0))])
        mask = torch.ones_like(batch)
        mask[1, :15] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = model(batch, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(padded[1:, 15:], model(short).logits, **close)


@torch.no_grad()
@pytest.mark.parametrize("format_", ["granitemoehybrid", "bamba", "hybridize"])
@pytest.mark.parametrize("kept", [(1,), (0, 2), (0, 1, 2, 3), (3,)], ids=str)
def test_any_subset_opens_in_stock_transformers(tmp_path, format_, kept):
    write_stock(tmp_path / "in", "llama")
    hybridize.convert(tmp_path / "in", tmp_path / "out", keep=kept, format=format_)
    assert_stock_and_ours_agree(tmp_path / "out")


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("init", ["attention", "random"])
def test_other_architectures_open_in_stock_transformers(tmp_path, architecture, init):
    write_stock(tmp_path / "in", architecture)
    hybridize.convert(tmp_path / "in", tmp_path / "out", attention=1, init=init)
    assert_stock_and_ours_agree(tmp_path / "out")


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_result_without_attention_opens_in_stock_transformers(tmp_path, architecture):
    write_stock(tmp_path / "in", architecture)
    hybridize.convert(tmp_path / "in", tmp_path / "out", attention=0)
    assert_stock_and_ours_agree(tmp_path / "out")


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"ssm_groups": "heads"},
        {"ssm_groups": 1},
        {"ssm_expand": 2},
        {"d_state": 3},
        {"d_state": 20},
        {"ssm_expand": 2, "ssm_groups": "kv", "d_state": 16, "init": "random"},
    ],
    ids=str,
)
def test_options_for_sizes_of_new_blocks(tmp_path, options):
    write_stock(tmp_path / "in", "llama")
    hybridize.convert(tmp_path / "in", tmp_path / "out", attention=1, **options)
    assert_stock_and_ours_agree(tmp_path / "out")
    block = load_model(tmp_path / "out").config.blocks[0]
    assert isinstance(block, MambaSizes)
    assert block.num_heads == 4 * options.get("ssm_expand", 1)
    assert block.n_groups == {"heads": 4, 1: 1}.get(options.get("ssm_groups"), 2)
    assert block.d_state == options.get("d_state", 8)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["granitemoehybrid", "bamba", "nemotron_h"])
def test_hybrids_can_be_converted_again(tmp_path, architecture):
    """Only the remaining attention is swapped; all other tensors keep the same bits."""
    original = write_stock(tmp_path / "in", architecture)
    result = hybridize.convert(tmp_path / "in", tmp_path / "out", attention=0)
    assert "*" not in result.layout_after
    assert load_model(tmp_path / "out")(tokens()).logits.isfinite().all()
    unchanged = hybridize.convert(tmp_path / "in", tmp_path / "same", attention="100%")
    assert unchanged.format == architecture
    before, after = original.state_dict(), stock(tmp_path / "same").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_new_blocks_resemble_the_attention_before_training(tmp_path):
    """The output of the new block is closer to the output of the attention than zero is."""
    write_stock(tmp_path / "in", "llama")
    hybridize.convert(tmp_path / "in", tmp_path / "out", keep=(0, 1, 2))
    teacher, student = load_model(tmp_path / "in"), load_model(tmp_path / "out")
    ids = tokens(4, 60)
    seen = []
    teacher.model.blocks[6].mixer.register_forward_hook(lambda m, i, o: seen.append(o))
    student.model.blocks[6].mixer.register_forward_hook(lambda m, i, o: seen.append(o))
    teacher(ids), student(ids)
    want, got = seen
    error = (got - want).norm() / want.norm()
    assert error < 1.0
    cosine = torch.cosine_similarity(got.flatten(), want.flatten(), dim=0)
    assert cosine > 0.3


def test_random_blocks_depend_on_the_seed_and_the_index_only(tmp_path):
    write_stock(tmp_path / "in", "llama")
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        hybridize.convert(tmp_path / "in", tmp_path / name, attention=1, init="random", seed=seed)
        states.append(load_model(tmp_path / name).state_dict())
    key = "model.blocks.0.mixer.in_proj.weight"
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0][key], states[2][key])
    assert not torch.equal(states[0][key], states[0]["model.blocks.2.mixer.in_proj.weight"])


def test_heads_that_are_added_to_fill_the_hidden_size_get_gradients(tmp_path):
    """Their input weights must not be zero."""
    write_stock(tmp_path / "in", "mistral", head_dim=4)
    hybridize.convert(tmp_path / "in", tmp_path / "out", attention=1)
    model = load_model(tmp_path / "out")
    block = model.config.blocks[0]
    assert isinstance(block, MambaSizes)
    assert block.num_heads == 8
    mixer = model.model.blocks[0].mixer
    gate, x, *_ = block.in_proj_splits()
    values = mixer.in_proj.weight[gate : gate + x].unflatten(0, (8, 4))
    assert (values.flatten(1).abs().sum(1) > 0).all()
    assert (mixer.norm.weight != 0).all()
    attention = model.config.blocks[4]
    assert isinstance(attention, AttentionSizes)
    assert (attention.num_heads, attention.num_kv_heads) == (8, 2)


def test_a_sharded_source_becomes_a_sharded_result_in_another_dtype(tmp_path):
    write_stock(tmp_path / "in", "llama", shard="20KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    result = hybridize.convert(
        tmp_path / "in", tmp_path / "out", attention=2, dtype="bfloat16", max_shard_size=20_000
    )
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert result.files == len(files) > 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert result.bytes_after == sum(p.numel() * 2 for p in model.parameters())


def test_provenance_and_verification(tmp_path):
    write_stock(tmp_path / "in", "llama")
    hybridize.convert(tmp_path / "in", tmp_path / "mid", attention=2, seed=5)
    hybridize.convert(tmp_path / "mid", tmp_path / "out", attention=1)
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())
    first, second = record["steps"]
    assert first["command"] == second["command"] == "convert"
    assert first["seed"] == 5
    assert first["options"]["attention"] == "2"
    assert first["source"]["name"] == "in"
    assert set(first["source"]["sha256"]) == {"model.safetensors"}
    assert second["metrics"]["layout_after"].count("*") == 1
    assert str(tmp_path) not in json.dumps(record)
    assert not hybridize.verify(tmp_path / "out").problems


def test_dry_run_writes_nothing(tmp_path):
    write_stock(tmp_path / "in", "llama")
    before = sorted(tmp_path.rglob("*"))
    plan = hybridize.convert(tmp_path / "in", tmp_path / "out", attention=1, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    done = hybridize.convert(tmp_path / "in", tmp_path / "out", attention=1)
    assert (plan.bytes_after, plan.parameters_after) == (done.bytes_after, done.parameters_after)
    weights = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert 0 <= weights - done.bytes_after < 20_000  # the header


def test_an_existing_output_is_replaced_only_with_force(tmp_path):
    write_stock(tmp_path / "in", "llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    with pytest.raises(InputError, match="`force`"):
        hybridize.convert(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "data"
    hybridize.convert(tmp_path / "in", tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "precious").exists()
    with pytest.raises(InputError):
        hybridize.convert(tmp_path / "in", tmp_path / "in", force=True)


def test_nonfinite_weights_are_named(tmp_path):
    model = write_stock(tmp_path / "in", "llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "in")
    with pytest.raises(InputError, match=r"model.layers.2.mlp.up_proj.weight.*`allow_nonfinite`"):
        hybridize.convert(tmp_path / "in", tmp_path / "out", attention=2)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out.partial*"))
    hybridize.convert(tmp_path / "in", tmp_path / "out", attention=2, allow_nonfinite=True)


@torch.no_grad()
def test_a_trained_checkpoint(materials, tmp_path):
    """A trained Llama is converted, opened in stock transformers, and generates text."""
    source = materials / "stories260K"
    hybridize.convert(source, tmp_path / "out", attention=1)
    model = stock(tmp_path / "out")
    tokenizer = hybridize.load_tokenizer(tmp_path / "out")
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=30, do_sample=False)
    assert out.shape[1] > ids.shape[1]
    text = (materials / "tinystories" / "valid-sample.txt").read_text()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :256]
    teacher, student = load_model(source), load_model(tmp_path / "out")
    want = teacher(ids).logits.log_softmax(-1)
    skipped = load_model(tmp_path / "out")
    for index, block in enumerate(skipped.config.blocks):
        if isinstance(block, MambaSizes):
            skipped.model.blocks[index].mixer.out_proj.weight.zero_()

    def divergence(model):
        got = model(ids).logits.log_softmax(-1)
        return (want.exp() * (want - got)).sum(-1).mean()

    # Before any training, the new blocks are much better than no blocks.
    assert divergence(student) < 0.75 * divergence(skipped)
