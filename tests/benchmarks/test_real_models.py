"""benchmarks/real_models.py on the bundled checkpoint, with a few hundred tokens."""

import gzip
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridize.checkpoints.load import load_model, load_tokenizer
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.data import teacher_samples
from hybridize.data.load_text import load_packed_dataset
from hybridize.demo import CHECKPOINT, EXAM, PROSE, TEXT

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import real_models
import real_models_text
import real_models_training
from real_models_arms import ARMS, Arm
from real_models_arms import TEXT as TEXT_FILE
from real_models_jobs import all_jobs, parse_counts, select
from real_models_store import Store, find
from real_models_table import tables
from real_models_training import Clock, TimeIsUp, TrainingSettings, Workspace, tokens_so_far


@pytest.fixture(scope="module", autouse=True)
def _small_recipe() -> Iterator[None]:
    """Fix our recipe, and calibrate on few tokens."""
    recipe = Arm(
        convert={"select": "uniform", "calibration": TEXT_FILE, "calibration_tokens": 1024},
        stages={"kl": 1.0},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARMS, "hybridize", recipe)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "train.jsonl"
    with gzip.open(TEXT, "rt", encoding="utf-8") as lines:
        path.write_text("".join(next(lines) for _ in range(200)))
    return path


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, text: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("benchmark")
    options = {
        "model": CHECKPOINT, "work": folder / "work", "output": folder, "name": "tiny",
        "data": text, "held-out": PROSE, "shares": "25%", "milestones": "0,256",
        "data-tokens": "4k", "seq-len": "64", "batch-size": "2", "validation-sequences": "2",
        "kl-tokens": "512", "perplexity-tokens": "512", "recall": "recall_associative_4",
        "recall-questions": "2", "mmlu": EXAM, "mmlu-limit": "1", "contexts": "32",
        "only": "hybridize",
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def results(command: list[str]) -> Path:
    """Run everything once; return the JSON file."""
    real_models.main(command)
    return Path(command[command.index("--output") + 1]) / "real_models-tiny.json"


def rows_of(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    rows = json.loads(path.read_text())["rows"]
    return {(row["arm"], row["tokens"]): row for row in rows}


def test_rows_have_every_part(results: Path) -> None:
    rows = rows_of(results)
    assert set(rows) == {("original", 0), ("hybridize", 0), ("hybridize", 256)}
    assert rows["hybridize", 256]["train"]["tokens"] == 256
    assert rows["hybridize", 256]["train"]["stages"][-1]["stage"] == "kl"
    assert rows["hybridize", 0]["conversion"]["kept"] == [2, 5]
    for row in rows.values():
        assert {"quality", "mmlu"} <= set(row)
        assert 0 <= row["quality"]["recall"]["recall_associative_4"] <= 1
        outcomes = row["mmlu"]["outcomes"]
        assert len(outcomes) == row["mmlu"]["questions"] == len(list((EXAM / "test").iterdir()))
        assert outcomes.count("1") / len(outcomes) == pytest.approx(row["mmlu"]["accuracy"])


def test_kl_and_perplexity_equal_those_from_logits(results: Path, command: list[str]) -> None:
    work = Path(command[command.index("--work") + 1]) / "tiny"
    (converted,) = work.glob("hybridize-*/converted")
    held_out = (work / "held-out.txt").read_text()
    # An independent reference: windows of 512 tokens, all logits at once, in float64.
    tokenizer = load_tokenizer(CHECKPOINT)
    ids = torch.tensor(tokenizer(held_out, add_special_tokens=False).input_ids)
    framed = torch.tensor(tokenizer(held_out).input_ids)[:512]

    def log_probs(directory: Path, ids: torch.Tensor) -> torch.Tensor:
        model = load_model(directory, dtype=torch.float32)
        with torch.no_grad():
            return model(ids[None]).logits[0].double().log_softmax(-1)

    teacher, student = (log_probs(each, framed) for each in (CHECKPOINT, converted))
    kl = (teacher.exp() * (teacher - student)).sum(-1).mean()
    rows = rows_of(results)
    assert rows["hybridize", 0]["quality"]["kl"] == pytest.approx(float(kl), rel=1e-3)
    assert rows["original", 0]["quality"]["kl"] == 0
    assert rows["hybridize", 0]["quality"]["perplexity_tokens"] == len(ids)
    window = torch.cat([torch.tensor([tokenizer.bos_token_id]), ids[:511]])
    found = log_probs(CHECKPOINT, window).gather(1, ids[:512, None]).mean()
    # The text is hardly longer than one window.
    assert rows["original", 0]["quality"]["nats_per_token"] == pytest.approx(-float(found), rel=0.1)


def test_finished_parts_are_not_repeated(
    results: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results.read_bytes()

    def fail(*_args: Any, **_options: Any) -> None:
        raise AssertionError("a finished part was measured again")

    for name in ("quality", "mmlu"):
        monkeypatch.setattr(real_models, name, fail)
    real_models.main(command)
    assert json.loads(before) == json.loads(results.read_bytes())


def test_other_settings_are_refused(results: Path, command: list[str]) -> None:
    before = results.read_bytes()
    with pytest.raises(SystemExit, match="seq_len 64, not 32"):
        real_models.main([*command, "--seq-len", "32"])
    assert results.read_bytes() == before


def test_table_list_and_plot(
    results: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    real_models.main([*command, "--table"])
    table = capsys.readouterr().out
    assert "| hybridize | 25% | 256 |" in table
    assert "| original | 100% | 0 | 0.000 | 1.000 × |" in table
    real_models.main([*command, "--list"])
    assert capsys.readouterr().out.count("done") == 3
    real_models.main([*command, "--plot"])
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_speed_compares_with_the_original(results: Path, command: list[str]) -> None:
    work = Path(command[command.index("--work") + 1]) / "tiny"
    (converted,) = work.glob("hybridize-*/converted")
    original, hybrid = real_models.speed(CHECKPOINT, converted, [16], "cpu")
    assert (original["model"], hybrid["model"]) == ("original", "hybrid")
    assert original["decode_ratio"] == 1
    assert hybrid["decode"]["median"] > 0
    assert hybrid["cache_bytes"] > 0


def training(text: Path, **changes: Any) -> TrainingSettings:
    options: dict[str, Any] = {
        "model": CHECKPOINT, "files": (str(text),), "data_tokens": 4000, "seq_len": 32,
        "batch_size": 1, "validation_sequences": 1, "save_every": 1, "cache_teacher": 0,
        "seed": 0, "device": "cpu",
    }  # fmt: skip
    return TrainingSettings(**options | changes)


def test_time_limit_stops_after_a_save_and_loses_nothing(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_models_training, "_LOOK_EVERY", 0.01)
    whole, stopped = (
        Workspace(tmp_path / name, "mamba-in-the-llama", "25%", training(text))
        for name in ("whole", "stopped")
    )
    for workspace in (whole, stopped):
        workspace.convert()
    whole.train(320, Clock(None))
    with pytest.raises(TimeIsUp):
        stopped.train(320, Clock(0))
    saved = tokens_so_far(tmp_path / "stopped", "mamba-in-the-llama", "25%", 320, 32)
    assert 0 < saved < 320
    assert saved % 32 == 0
    assert not stopped.checkpoint(320).exists()
    figures = stopped.train(320, Clock(None))
    assert figures["tokens"] == 320
    models = [load_model(workspace.checkpoint(320)) for workspace in (whole, stopped)]
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(ours, theirs)


def test_teacher_is_asked_once_for_all_runs(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = training(text, cache_teacher=4, data_tokens=512)
    first, second = (Workspace(tmp_path, "mamba-in-the-llama", s, settings) for s in ("25%", "50%"))
    first.convert()
    second.convert()
    seconds = first.train(64, Clock(None))["teacher_seconds_of_all_runs"]
    assert [path.name for path in (tmp_path / "cache" / "teacher").iterdir()]
    assert not (tmp_path / "cache" / "one-step").exists()

    def fail(*_args: Any) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(TeacherCache, "_predictions", fail)
    figures = second.train(64, Clock(None))
    assert figures["teacher_seconds_of_all_runs"] == seconds
    assert figures["tokens"] == 64


def test_time_limit_begins_no_task_that_would_end_after_it() -> None:
    clock = Clock(1.0)
    clock.check(50)
    with pytest.raises(TimeIsUp):
        clock.check(70)
    Clock(None).check(1e9)


def test_random_blocks_replace_the_same_attention_as_ours(tmp_path: Path, text: Path) -> None:
    settings = training(text)
    ours = Workspace(tmp_path, "hybridize", "25%", settings)
    ours.checkpoint(0).with_suffix(".json").write_text(json.dumps({"kept": [0, 3]}))
    assert Workspace(tmp_path, "random", "25%", settings).convert()["kept"] == [0, 3]


def test_samples_are_tokenized_as_they_were_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_models_text, "_PART", 256)
    monkeypatch.setattr(real_models_text, "_ROW", 64)
    monkeypatch.setattr(teacher_samples, "_MAX_LENGTH", 64)
    (tmp_path / "teacher").mkdir()
    earlier = '{"text": "An interrupted run sampled this."}\n'
    (tmp_path / "teacher" / "part-00000.jsonl").write_text(earlier)
    (file,) = real_models_text.training_files(["teacher"], CHECKPOINT, tmp_path, 512, 0, "cpu")
    lines = Path(file).read_text().splitlines(keepends=True)
    assert lines[0] == earlier
    alone = tmp_path / "sampled.jsonl"
    alone.write_text("".join(lines[1:]))
    found = load_packed_dataset([str(alone)], model=CHECKPOINT, length=32, tokens=None)
    expected = load_packed_dataset(["teacher"], model=CHECKPOINT, length=64, tokens=256, seed=1)
    assert torch.equal(found.ids.flatten()[:32], expected.ids.flatten()[:32])


def test_shared_lines_of_the_texts_are_refused(tmp_path: Path) -> None:
    line = "a sentence of the held-out text that is long enough to count, because no other one is "
    line += "as long as this"
    held_out, other, same = (tmp_path / f"{name}.txt" for name in ("held-out", "other", "same"))
    held_out.write_text(f"Heading\n{line}\n")
    other.write_text(f"Heading\n{line[:-1]}\n")
    same.write_text(f"Another text\n  {line}\n")
    real_models_text.check_disjoint([str(other)], held_out)
    with pytest.raises(SystemExit, match=r"same\.txt: contains a line"):
        real_models_text.check_disjoint([str(other), str(same)], held_out)


def test_patterns_select_jobs() -> None:
    jobs = all_jobs(["50%", "25%"], parse_counts("0,30k,1M"))
    assert [str(job) for job in jobs[:3]] == ["original:100%:0", "hybridize:50%:0",
                                              "mamba-in-the-llama:50%:0"]  # fmt: skip
    assert "mamba-in-the-llama:25%:4M" in map(str, jobs)
    assert [str(job) for job in select(jobs, ["hybridize:25%:30k", "random:*:1M"])] == [
        "original:100%:0",
        "hybridize:25%:30k",
        "random:50%:1M",
        "random:25%:1M",
    ]
    with pytest.raises(SystemExit, match="no such run"):
        select(jobs, ["hybridize:25%:31k"])


def test_another_recipe_replaces_the_row(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.json", tmp_path)
    old = {"arm": "a", "share": "25%", "tokens": 1, "recipe": {"convert": 1}}
    new = old | {"recipe": {"convert": 2}}
    store.add(old, "quality", {"kl": 1})
    store.add(old, "mmlu", {"accuracy": 1})
    store.add(new, "quality", {"kl": 2})
    assert store.read()["rows"] == [new | {"quality": {"kl": 2}}]
    assert find(store.read()["rows"], old) is None


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.json", tmp_path)

    def add(tokens: int) -> None:
        store.add({"arm": "a", "share": "25%", "tokens": tokens, "recipe": None}, "quality", {})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(64)))
    assert sorted(row["tokens"] for row in store.read()["rows"]) == list(range(64))


def test_table_of_worked_figures() -> None:
    def row(arm: str, tokens: int, kl: float, perplexity: float, accuracy: float) -> dict[str, Any]:
        return {
            "arm": arm, "share": "100%" if arm == "original" else "25%", "tokens": tokens,
            "recipe": None, "quality": {"kl": kl, "perplexity": perplexity},
            "mmlu": {"accuracy": accuracy, "stderr": 0.01},
        }  # fmt: skip

    content = {
        "rows": [
            row("hybridize", 1000, 0.5, 30.0, 0.30),
            row("mamba-in-the-llama", 4000, 0.75, 40.0, 0.25),
            row("original", 0, 0.0, 20.0, 0.35),
        ]
    }
    lines = tables(content).splitlines()
    assert lines[2].startswith("| original | 100% | 0 | 0.000 | 1.000 × |")
    assert lines[3] == "| hybridize | 25% | 1k | 0.500 | 1.500 × | 30.0% ± 1.0% | 50% |"
    assert lines[-1] == "| 25% | 1k | 0.500 | 0.750 |"


def test_arms_share_what_they_do_not_compare() -> None:
    assert dict(ARMS["random"].stages) == dict(ARMS["hybridize"].stages)
    assert ARMS["mamba-in-the-llama"].convert == {
        "select": "uniform", "init": "attention", "ssm_groups": "heads",
    }  # fmt: skip
    for arm in ARMS.values():
        assert sum(arm.stage_tokens(10_000).values()) == 10_000
        json.dumps(arm.recipe())
