"""New blocks that are copied from a hybrid of the same model, the donor."""

import pytest
import torch

import hybridize
from hybridize.checkpoints.load import load_model
from hybridize.checkpoints.save import save_model
from hybridize.data.load_text import load_packed_dataset
from hybridize.errors import InputError
from tiny import write_stock, write_tokenizer


@pytest.fixture
def source(tmp_path):
    """A Llama, with a donor beside it: a hybrid without attention whose blocks have noise added."""
    write_stock(tmp_path / "in", "llama")
    write_tokenizer(tmp_path / "in")
    hybridize.convert(tmp_path / "in", tmp_path / "start", attention=0)
    donor = load_model(tmp_path / "start", dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for block in donor.model.blocks[::2]:
            for parameter in block.mixer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    start, record = tmp_path / "start", {"command": "test", "options": {}, "seed": 0, "metrics": {}}
    save_model(dict(donor.named_parameters()), tmp_path / "donor", like=start, record=record)
    return tmp_path / "in"


def mixers(directory):
    model = load_model(directory, dtype=torch.float32)
    return [block.mixer for block in model.model.blocks]


@pytest.mark.parametrize("format_", ["auto", "hybridize"])
def test_new_blocks_come_from_the_donor_and_other_tensors_from_the_model(source, tmp_path, format_):
    donor, original = mixers(tmp_path / "donor"), mixers(source)
    hybridize.convert(source, tmp_path / "out", keep=(1,), init=tmp_path / "donor", format=format_)
    for index, mixer in enumerate(mixers(tmp_path / "out")):
        wanted = original[index] if index % 2 or index == 2 else donor[index]
        assert mixer.state_dict().keys() == wanted.state_dict().keys()
        for name, value in mixer.state_dict().items():
            assert torch.equal(value, wanted.state_dict()[name]), (index, name)


def test_selection_measures_the_blocks_of_the_donor(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A few words to measure on, again and again. " * 60)
    options = {"attention": 2, "select": "sensitivity", "calibration": text}
    options["calibration_tokens"] = 1000
    donated = hybridize.convert(source, tmp_path / "out", init=tmp_path / "donor", **options)
    fitted = hybridize.convert(source, tmp_path / "fitted", **options)
    assert donated.errors == ()  # nothing was fitted
    assert fitted.errors
    assert donated.curve[-1].kl != fitted.curve[-1].kl
    # The last point of the curve is the donor itself.
    with torch.no_grad():
        dataset = load_packed_dataset([str(text)], model=source, length=256, tokens=1000)
        ids, seq_idx = dataset.sequences(torch.arange(len(dataset)))
        want, got = (
            load_model(path, dtype=torch.float64)(
                ids, seq_idx=seq_idx, use_cache=False
            ).logits.log_softmax(-1)
            for path in (source, tmp_path / "donor")
        )
    kl = float((want.exp() * (want - got)).sum(-1).mean())
    assert donated.curve[-1].kl == pytest.approx(kl, rel=1e-4)


def test_a_donor_of_another_shape_is_rejected(source, tmp_path):
    write_stock(tmp_path / "deep", "llama", num_hidden_layers=5)
    write_stock(tmp_path / "wide", "llama", hidden_size=48, num_attention_heads=6)
    for name, complaint in (("deep", "number of blocks is 8"), ("wide", "hidden size is 32")):
        with pytest.raises(InputError, match=f"`init=.*donor`: its {complaint}"):
            hybridize.convert(tmp_path / name, tmp_path / "out", init=tmp_path / "donor")
    with pytest.raises(
        InputError, match=r"donor`: its block \d has d_state 8, but the new block 16"
    ):
        hybridize.convert(source, tmp_path / "out", init=tmp_path / "donor", d_state=16)
    with pytest.raises(InputError, match=r"in`: its block \d is not Mamba-2; .*`attention=0%`"):
        hybridize.convert(source, tmp_path / "out", init=source)
    with pytest.raises(InputError, match="`calibration` fits blocks that start"):
        hybridize.convert(
            source, tmp_path / "out",
            init=tmp_path / "donor", calibration="teacher", select="uniform",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
