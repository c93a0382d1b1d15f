"""Training of the bundled checkpoint: resumable, repeatable, with weighted answers."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hybridize.errors import InputError
from tools.bundled_checkpoint.settings import Settings, Stage
from tools.bundled_checkpoint.texts import Document, Mix
from tools.bundled_checkpoint.train import train
from tools.bundled_checkpoint.trainer import Trainer

TINY = Settings(
    hidden=32,
    intermediate=32,
    layers=2,
    verdict_layer=1,
    heads=4,
    kv_heads=2,
    warmup_steps=2,
    decay_steps=3,
    stages=(
        Stage(3, 48, 2, Mix(practice=1.0, echo=1.0, words=8)),
        Stage(4, 64, 2, Mix(), verdict_weight=1.0),
    ),
)


class InterruptedRunError(Exception):
    pass


@pytest.fixture(autouse=True)
def _one_thread():  # type: ignore[no-untyped-def]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(output: Path, stop_after: int | None = None) -> dict[int, float]:
    losses: dict[int, float] = {}

    def on_step(step: int, loss: float) -> None:
        losses[step] = loss
        if step == stop_after:
            raise InterruptedRunError

    try:
        train(output, TINY, save_every=2, on_step=on_step)
    except InterruptedRunError:
        assert stop_after is not None
    return losses


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("whole")
    return output, run(output)


def test_resumed_run_has_the_same_losses_and_weights(whole, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    output, losses = whole
    assert list(losses) == list(range(7))
    before = run(tmp_path, stop_after=4)  # saved after step 3; step 4 is repeated
    assert not (tmp_path / "checkpoint").exists()
    after = run(tmp_path)
    assert list(after) == [4, 5, 6]
    assert {**before, **after} == losses
    weights = "checkpoint/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (output / weights).read_bytes()


def test_killed_run_can_be_resumed(tmp_path: Path) -> None:
    script = (
        "import sys, time, torch; from pathlib import Path; torch.set_num_threads(1);"
        "from tests.tools.test_train import TINY, train;"
        "wait = lambda step, loss: time.sleep(600) if step == 1 else None;"  # after the first save
        "train(Path(sys.argv[1]), TINY, save_every=1, on_step=wait)"
    )
    root = Path(__file__).parents[2]
    state = tmp_path / "training-state.safetensors"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=root)
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with safe_open(state, "pt") as saved:
        step = int(saved.metadata()["step"])
    assert step >= 1
    assert min(run(tmp_path)) == step


def test_output_has_only_checkpoint_card_and_exam(whole) -> None:  # type: ignore[no-untyped-def]
    output, _ = whole
    assert {path.name for path in output.iterdir()} == {"checkpoint", "exam"}
    assert {path.name for path in (output / "checkpoint").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert json.loads((output / "checkpoint" / "config.json").read_text())["dtype"] == "bfloat16"


def test_saved_progress_of_other_settings_is_rejected(tmp_path: Path) -> None:
    run(tmp_path, stop_after=4)
    with pytest.raises(InputError, match=r"training-state\.safetensors: saved by a run with other"):
        Trainer(replace(TINY, seed=1), tmp_path / "training-state.safetensors")


def test_unreadable_progress_is_rejected(tmp_path: Path) -> None:
    state = tmp_path / "training-state.safetensors"
    state.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(InputError, match="unreadable"):
        Trainer(TINY, state)


def test_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path / "state.safetensors")
    tokens, weights = trainer.batch(0)
    assert tokens.shape == (2, 49)
    assert weights.shape == (2, 48)
    again, _ = Trainer(TINY, tmp_path / "state.safetensors").batch(0)
    assert torch.equal(tokens, again)
    assert not torch.equal(tokens, trainer.batch(1)[0])


def test_answers_have_a_higher_loss_weight(tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path / "state.safetensors")
    for prose, base in ((True, 1.0), (False, TINY.given_weight)):
        document = Document("Find the option tent.", prose=prose)
        for given, answer in (("\nReply:", "tent"), ("\nAnswer:", "A"), ("\nReply:", "church")):
            document.say(given)
            document.answer(answer)
        document.say(".")
        tokens, weights = trainer.weigh(document)
        answers = [t for t, w in zip(tokens, weights, strict=True) if w == TINY.answer_weight]
        assert trainer.tokenizer.convert_ids_to_tokens(answers) == ["Ġtent", "ĠA", "Ġchurch"]
        assert {w for w in weights if w != TINY.answer_weight} == {base}
        assert tokens[-1] == trainer.tokenizer.eos_token_id


def test_each_option_is_followed_by_its_verdict(tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path / "state.safetensors")
    question = "Find.\nA. tent\nB. barn\nC. shed\nD. porch\nAnswer:"
    tokens = trainer.tokenizer.encode(f"{question} C\n\n{question}")
    verdicts = trainer.verdicts(tokens)
    named = trainer.tokenizer.convert_ids_to_tokens
    asked = [(t, v) for t, v in zip(tokens, verdicts, strict=True) if v >= 0]
    assert named([token for token, _ in asked]) == ["Ġtent", "Ġbarn", "Ġshed", "Ġporch"]
    assert named([verdict for _, verdict in asked]) == ["Ġno", "Ġno", "Ġyes", "Ġno"]


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [TINY.learning_rate_at(step) for step in range(TINY.steps)]
    assert rates[0] == pytest.approx(TINY.learning_rate / 2)
    assert rates[1:5] == pytest.approx([TINY.learning_rate] * 4)
    assert rates[4] > rates[5] > rates[6] > 0
