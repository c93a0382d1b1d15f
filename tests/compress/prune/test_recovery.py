"""A pruned model can be distilled from its original."""

import pytest
import torch

import hybridize
from hybridize.errors import InputError
from tiny import write_stock, write_tokenizer


def test_distillation_of_a_pruned_model_lowers_the_loss(tmp_path):
    write_stock(tmp_path / "in", "llama")
    write_tokenizer(tmp_path / "in")
    text = tmp_path / "text.txt"
    text.write_text("A few words to learn, again and again, with Other Letters 0123. " * 60)
    hybridize.prune(
        tmp_path / "in", tmp_path / "cut", params="60%", calibration=text, calibration_tokens=1024,
        candidates=2, axes=("depth", "ffn", "hidden"),
    )  # fmt: skip
    options = {
        "teacher": tmp_path / "in", "data": (str(text),), "seq_len": 64, "batch_size": 4,
        "validation_sequences": 2, "tokens": 10_240, "device": "cpu",
    }  # fmt: skip
    result = hybridize.distill(
        tmp_path / "cut", tmp_path / "done", stages=("kl",), train="all", **options
    )
    (stage,) = result.stages
    assert stage.validation_after < stage.validation_before
    before, after = (
        hybridize.load_model(tmp_path / name, dtype=torch.float32) for name in ("cut", "done")
    )
    assert before.config.to_dict() == {**after.config.to_dict()}
    with pytest.raises(InputError, match="`stages=kl`"):
        hybridize.distill(tmp_path / "cut", tmp_path / "no", **options)
