"""`hybridize eval`: its comparison, table, files and errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from exams import WORDS, write_exam, write_questions

from hybridize.__main__ import main
from hybridize.cli.evaluate_table import print_result
from hybridize.errors import HybridizeError, InputError
from hybridize.evals.evaluate import evaluate
from hybridize.evals.results import EvaluationResult


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(" ".join(WORDS).encode() + b"\r\ncaf\xc3\xa9\n")
    return path


@pytest.fixture(scope="module")
def pair(checkpoints: dict[str, Path], exam: Path, tmp_path_factory: Any) -> EvaluationResult:
    """The results of two models; one is the baseline of the other."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(WORDS) + "\n")
    return evaluate(
        [checkpoints["plain"], checkpoints["bos"]],
        mmlu_dir=exam,
        limit=4,
        perplexity=path,
        baseline=checkpoints["bos"],
        output=path.with_suffix(".json"),
        backend="transformers",
        device="cpu",
    )


def test_the_baseline_comes_first_and_only_once(
    pair: EvaluationResult, checkpoints: dict[str, Path]
) -> None:
    bos, plain = (str(checkpoints[name]) for name in ("bos", "plain"))
    assert [model.model for model in pair.models] == [bos, plain]
    assert pair.baseline == bos
    first, second = pair.models
    assert not first.comparisons
    assert first.perplexity_ratio is None
    values = {metric.key: metric.value for metric in first.metrics}
    for metric, comparison in zip(second.metrics, second.comparisons, strict=True):
        assert comparison.key == metric.key
        assert comparison.difference == pytest.approx(metric.value - values[metric.key])
        assert comparison.p_value is not None
    assert any(comparison.difference for comparison in second.comparisons)
    assert first.perplexity
    assert second.perplexity
    ratio = second.perplexity.perplexity / first.perplexity.perplexity
    assert second.perplexity_ratio == pytest.approx(ratio)


def test_the_table_shows_scores_recovery_and_perplexity(
    pair: EvaluationResult, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(pair)
    shown = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    first, second = (model.metrics[0] for model in pair.models)
    assert first.task == "mmlu"
    assert pair.exam is not None
    name = pair.exam  # the exam's questions are not MMLU's
    for metric in (first, second):
        assert f"{100 * metric.value:.1f} ± {100 * (metric.stderr or 0):.1f}" in lines[name]
    assert f"{100 * second.value / first.value:.1f}%" in lines[name]
    for label in ("stem", "social sciences", "humanities", "other", "anatomy", "virology"):
        assert any(line.strip().startswith(label) for line in shown.splitlines()), label
    assert "5-shot" in shown
    caption = f"tasks named mmlu ask the questions of the {name}, not those of MMLU"
    assert caption in " ".join(shown.split())
    assert "lost" in shown
    assert "nats/token" in shown


def test_many_subjects_are_shown_only_on_demand(
    pair: EvaluationResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridize.cli.evaluate_table.FEW_SUBJECTS", 3)
    print_result(pair)
    shown = capsys.readouterr().out
    assert "anatomy" not in shown
    assert "humanities" in shown
    assert "--per-subject shows all 5 subjects" in " ".join(shown.split())
    print_result(pair, per_subject=True)
    assert "anatomy" in capsys.readouterr().out


def test_the_file_of_several_models_has_lm_evals_layout_for_each(
    pair: EvaluationResult,
) -> None:
    assert pair.models[0].perplexity
    path = Path(pair.models[0].perplexity.file).with_suffix(".json")
    written = json.loads(path.read_text())
    assert list(written) == ["models"]
    assert list(written["models"]) == [model.model for model in pair.models]
    for model in pair.models:
        layout = written["models"][model.model]
        assert layout["results"] == model.lm_eval["results"]
        assert "samples" not in layout
        assert layout["hybridize"]["baseline"] == pair.baseline
        assert layout["hybridize"]["comparisons"] == model.to_dict()["comparisons"]


def test_the_file_of_one_model_has_lm_evals_layout(
    checkpoint: Path, exam: Path, text: Path, tmp_path: Path
) -> None:
    from lm_eval.utils import make_table

    output = tmp_path / "results.json"
    output.write_text("old")
    options: dict[str, Any] = {
        "mmlu_dir": exam,
        "limit": 3,
        "num_fewshot": 1,
        "perplexity": text,
        "output": output,
        "backend": "transformers",
        "device": "cpu",
    }
    with pytest.raises(InputError, match="exists; `force` replaces it"):
        evaluate(checkpoint, **options)
    assert output.read_text() == "old"
    result = evaluate(checkpoint, force=True, **options)
    written = json.loads(output.read_text())
    assert "humanities" in make_table(written, "groups")
    assert written["results"]["mmlu"]["acc,none"] == result.models[0].metrics[0].value
    assert written["config"]["model_args"] == {"pretrained": str(checkpoint), "dtype": "float32"}
    assert written["config"]["limit"] == 3
    assert written["model_name"] == str(checkpoint)
    assert written["n-shot"]["mmlu_anatomy"] == 1
    ours = written["hybridize"]
    assert ours["perplexity"]["bytes"] == len(text.read_bytes())
    assert result.models[0].perplexity
    assert ours["perplexity"] == result.models[0].perplexity.to_dict()
    assert ours["options"]["mmlu_dir"] == exam.name
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_failed_write_keeps_the_old_file(
    pair: EvaluationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridize.evals.results_file import write_results

    output = tmp_path / "results.json"
    output.write_text("old")

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(HybridizeError, match=r"results\.json: cannot be written: No space left"):
        write_results(pair, output)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert output.read_text() == "old"


def test_both_backends_give_the_same_scores(checkpoint: Path, exam: Path, text: Path) -> None:
    ours, stock = (
        evaluate(checkpoint, mmlu_dir=exam, limit=4, perplexity=text, backend=backend, device="cpu")
        for backend in ("hybridize", "transformers")
    )
    assert ours.models[0].metrics == stock.models[0].metrics
    assert ours.models[0].perplexity
    assert stock.models[0].perplexity
    nats = stock.models[0].perplexity.nats_per_token
    assert ours.models[0].perplexity.nats_per_token == pytest.approx(nats, rel=1e-6)
    layouts = [result.models[0].lm_eval for result in (ours, stock)]
    assert [layout["model_source"] for layout in layouts] == ["hybridize", "transformers"]
    assert [layout["config"]["model_num_parameters"] for layout in layouts] == [
        layouts[0]["config"]["model_num_parameters"]
    ] * 2


def test_perplexity_alone_runs_no_task(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    result = evaluate(
        checkpoint, perplexity=text, output=output, backend="transformers", device="cpu"
    )
    assert not result.models[0].metrics
    assert json.loads(output.read_text())["hybridize"]["perplexity"]["nats_per_token"] > 0


def test_the_beginning_of_a_text_ends_with_a_whole_word(
    checkpoint: Path, tmp_path: Path, text: Path
) -> None:
    words = [*WORDS[:4], "café"]
    beginning = tmp_path / "beginning.txt"
    beginning.write_text(" ".join(words))
    size = len(beginning.read_bytes())
    text.write_text(" ".join([*words, "caf\u00e9s", *WORDS]))
    alone = evaluate(checkpoint, perplexity=beginning, device="cpu").models[0].perplexity
    assert alone
    assert (alone.bytes, alone.words) == (size, 5)
    for more in (1, 5, 7):  # within the next word: before, inside and after its last letter é
        cut = evaluate(
            checkpoint, perplexity=text, perplexity_size=size + more, device="cpu"
        ).models[0]
        assert cut.perplexity
        assert cut.perplexity.to_dict() == alone.to_dict() | {"file": str(text)}
    whole = evaluate(checkpoint, perplexity=beginning, perplexity_size="1MB", device="cpu")
    assert whole.models[0].perplexity == alone
    _refuse("no word ends within 3 bytes", checkpoint, perplexity=text, perplexity_size=3)
    _refuse("`perplexity_size` needs `perplexity`", checkpoint, perplexity_size=3)


def _refuse(match: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        evaluate(*arguments, **{"device": "cpu", **options})
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_refused(checkpoint: Path, exam: Path, tmp_path: Path) -> None:
    _refuse("at least one checkpoint", [])
    _refuse("`limit=0`: give a whole number of at least 1", checkpoint, limit=0)
    _refuse("`num_fewshot=-1`", checkpoint, num_fewshot=-1)
    _refuse("`batch_size=0`", checkpoint, batch_size=0)
    _refuse("`max_length=1`", checkpoint, max_length=1)
    _refuse("`backend=vllm`: choose one of hybridize, transformers", checkpoint, backend="vllm")
    _refuse("`tasks`: name at least one task", checkpoint, tasks=[])
    _refuse("`dtype=int8`", checkpoint, dtype="int8", mmlu_dir=exam)
    _refuse(
        "`kv_cache_dtype` and `ssm_cache_dtype` work with `backend=hybridize` only",
        checkpoint,
        backend="transformers",
        kv_cache_dtype="fp8",
    )
    _refuse("no such directory", str(tmp_path / "nowhere"))
    _refuse("no such directory", checkpoint, baseline=tmp_path / "nowhere")
    _refuse("has no config.json", tmp_path)
    _refuse("directory does not exist", checkpoint, output=tmp_path / "no" / "out.json")
    _refuse("is a directory", checkpoint, output=tmp_path)


def test_wrong_texts_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    _refuse("the file is empty", checkpoint, perplexity=empty)
    _refuse(r"not UTF-8 text \(byte 3", checkpoint, perplexity=latin)
    _refuse("cannot be read: No such file", checkpoint, perplexity=tmp_path / "nowhere.txt")


def test_wrong_exams_are_refused(checkpoint: Path, exam: Path, tmp_path: Path) -> None:
    _refuse("no such directory", checkpoint, mmlu_dir=tmp_path / "nowhere")
    _refuse("has no subject of this task", checkpoint, tasks=["mmlu_custom"], mmlu_dir=exam)
    _refuse(
        r"anatomy_dev\.csv: 6 questions are too few for 7 shots",
        checkpoint,
        mmlu_dir=exam,
        num_fewshot=7,
    )
    _refuse("has no subject of this task", checkpoint, tasks=["mmlu_econometrics"], mmlu_dir=exam)
    _refuse("Duplicate task 'mmlu_anatomy'", checkpoint, tasks=["mmlu", "mmlu_stem"], mmlu_dir=exam)
    _refuse(
        "it has anatomy, astronomy, philosophy, sociology, virology",
        checkpoint,
        tasks=["mmlu_custom_continuation"],
        mmlu_dir=exam,
    )
    for name in ("stem", "stem_continuation", "anatomy_continuation"):
        write_exam(tmp_path / name, [name])
        _refuse(
            f"'{name}' is also that of a category of MMLU or of a form of it",
            checkpoint,
            mmlu_dir=tmp_path / name,
        )


def test_a_damaged_row_is_refused_before_a_model_is_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_exam(tmp_path, ["anatomy"])
    write_questions(tmp_path / "test" / "anatomy_test.csv", [["q", "1", "2", "3", "4"]])
    monkeypatch.setattr(
        "hybridize.evals.backends.load_model_and_tokenizer", lambda *_a, **_o: pytest.fail("loaded")
    )
    _refuse(r"anatomy_test\.csv, line 1: 5 fields", checkpoint, mmlu_dir=tmp_path)


def test_the_missing_extra_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(HybridizeError, match=r'pip install "hybridize\[eval\]"') as caught:
        evaluate(checkpoint, device="cpu")
    assert caught.value.exit_code == 1


def test_the_command_writes_results_to_stdout_and_errors_to_stderr(
    checkpoint: Path, mixed_exam: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(checkpoint), "--mmlu-dir", str(mixed_exam), "--limit", "2"]
    arguments += ["--perplexity", str(text), "--device", "cpu", "--backend", "transformers"]
    assert main(arguments) == 0
    captured = capfd.readouterr()
    assert "custom subjects" in captured.out
    assert captured.err == ""
    assert main([*arguments, "--json"]) == 0
    captured = capfd.readouterr()
    found = json.loads(captured.out)
    assert found["models"][0]["metrics"][0]["task"] == "mmlu"
    assert found["options"]["limit"] == 2
    assert captured.err == ""
    assert main([*arguments, "--limit", "0"]) == 2
    captured = capfd.readouterr()
    assert captured.err == "error: --limit 0: give a whole number of at least 1\n"
    assert captured.out == ""


def test_the_command_runs_outside_of_a_repository(
    checkpoint: Path, mixed_exam: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "hybridize", "eval", str(checkpoint)]
    command += ["--mmlu-dir", str(mixed_exam), "--tasks", "mmlu_tools", "--limit", "2"]
    done = subprocess.run(
        [*command, "-o", "results.json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "tools" in done.stdout
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["results"]["mmlu_tools"]["sample_len"] == 2
