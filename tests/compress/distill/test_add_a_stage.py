"""Adding a stage from outside the package: one file with its class, and one registry entry.

CONTRIBUTING.md describes the same steps.
"""

import json
import subprocess
import sys

import pytest
from distilling import write_pair

from hybridize.__main__ import main
from hybridize.compress.distill.config import DistillConfig
from hybridize.compress.distill.stages import STAGES, StageSpec

MODULE = '''
"""Train the student on the text alone, without the teacher."""

import torch
from torch.nn.functional import cross_entropy

from hybridize.compress.distill.stages.base import Stage


class CrossEntropy(Stage):
    def training_step(self, ids, seq_idx, indices):
        loss = self._loss(ids, seq_idx)
        self.backward(loss)
        return float(loss.detach())

    @torch.no_grad()
    def validation_step(self, ids, seq_idx, indices):
        return float(self._loss(ids, seq_idx))

    def _loss(self, ids, seq_idx):
        assert self.pair.teacher is None  # the stage needs none
        logits = self.pair.student(ids, seq_idx=seq_idx, use_cache=False).logits
        same = seq_idx[:, 1:] == seq_idx[:, :-1]
        labels = ids[:, 1:].masked_fill(~same, -100)
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
'''


@pytest.fixture
def text_stage(tmp_path, monkeypatch):
    """Add the stage ``text``, and let the command line read the registry again."""
    (tmp_path / "text_stage.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    entry = StageSpec(
        "text_stage:CrossEntropy",
        help="the text",
        loss="cross-entropy, nats per token",
        tokens=3_000_000,
        learning_rate=2e-3,
        needs_teacher=False,
    )
    monkeypatch.setitem(STAGES, "text", entry)
    monkeypatch.delitem(sys.modules, "hybridize.cli.distill", raising=False)
    yield
    sys.modules.pop("hybridize.cli.distill", None)
    sys.modules.pop("text_stage", None)


def test_a_registered_stage_has_options_and_trains(tmp_path, text_stage, capsys):
    assert main(["distill", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--text-tokens N Training tokens of the text stage" in shown
    assert "the student learns the text. [default: 3M]" in shown
    assert "--text-lr X Peak learning rate of the text stage. [default: 0.002; 0.0003" in shown

    teacher, student, text = write_pair(tmp_path)
    command = [
        "distill", student, "-o", tmp_path / "out", "--teacher", teacher, "--data", text,
        "--stages", "text", "--text-tokens", "2560", "--seq-len", 16, "--batch-size", 4,
        "--validation-sequences", 4, "--device", "cpu",
    ]  # fmt: skip
    assert main([*map(str, command), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["stages"]
    assert result["stage"] == "text"
    assert result["steps"] == 2560 // (16 * 4)
    assert result["validation_after"] < result["validation_before"]
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["steps"][-1]
    assert record["options"]["stage_tokens"] == {"text": 2560}
    assert record["options"]["learning_rates"] == {"text": 2e-3}

    assert main([*map(str, command), "--force", "--text-lr", "0"]) == 2
    assert "--text-lr 0: give a number above 0" in capsys.readouterr().err


def test_a_registered_stage_is_an_option_value_in_python(text_stage):
    config = DistillConfig(teacher="t", stages="text", stage_tokens={"text": "1M"}, train="all")
    assert config.tokens_of("text") == 1_000_000
    assert config.learning_rate_of("text") == 3e-4
    assert config.accepts_any_student


def test_help_does_not_import_torch():
    code = (
        "import sys; from hybridize.__main__ import main; code = main(['distill', '--help']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
