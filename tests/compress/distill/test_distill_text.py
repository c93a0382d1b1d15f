"""The text of a distillation: sources from the command line, and text that changes or is gone."""

import json

import pytest
from distilling import short_run, write_pair

from hybridize.__main__ import main
from hybridize.compress.distill.trainer import Trainer
from hybridize.errors import InputError


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


def arguments(pair, output, *sources):
    teacher, student, _ = map(str, pair)
    command = ["distill", student, "-o", str(output), "--teacher", teacher, "--stages", "kl"]
    command += ["--kl-tokens", "256", "--seq-len", "16", "--batch-size", "4"]
    command += ["--validation-sequences", "4", "--json"]
    return [*command, *(word for source in sources for word in ("--data", source))]


def test_sources_with_weights(pair, tmp_path, capsys):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.jsonl").write_bytes(pair[2].read_bytes())
    given = [f"{pair[2]}:2", f"{folder}/*.jsonl:1"]
    assert main(arguments(pair, tmp_path / "out", *given)) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["validation_sequences"] == 4
    assert "2 .jsonl files" in output.err
    for wrong, complaint in (
        ([f"{pair[2]}:0"], "0 is not a weight"),
        ([given[0], str(folder)], "has no weight, but"),
    ):
        assert main(arguments(pair, tmp_path / "no", *wrong)) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert line.startswith("error: --data ")
        assert complaint in line
        assert not list(tmp_path.glob("no*"))


class StoppedError(Exception):
    pass


def test_a_resumed_run_needs_no_text_that_is_packed(pair, tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    text.write_bytes(pair[2].read_bytes())
    run = (*pair[:2], text)
    short_run(run, tmp_path / "expected", stages=("kl",))

    def stop(self, saver):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", stop)
        with pytest.raises(StoppedError):
            short_run(run, tmp_path / "out", stages=("kl",))
    text.write_text('{"text": "other"}')
    short_run(run, tmp_path / "out", stages=("kl",), resume=True)
    for name in ("model.safetensors", "distill.jsonl"):
        expected, found = ((tmp_path / each / name) for each in ("expected", "out"))
        assert expected.stat().st_size == found.stat().st_size
    assert (tmp_path / "expected" / "distill.jsonl").read_text() == (
        tmp_path / "out" / "distill.jsonl"
    ).read_text()


def test_a_run_does_not_go_on_with_another_text(pair, tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    text.write_bytes(pair[2].read_bytes())
    run = (*pair[:2], text)

    def stop(self, *_, **__):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("hybridize.data.load_text.ShardWriter.write", stop)
        with pytest.raises(StoppedError):
            short_run(run, tmp_path / "out", stages=("kl",))
    text.write_text(text.read_text() + '\n{"text": "other"}')
    with pytest.raises(InputError, match="has changed since the interrupted run began; `force"):
        short_run(run, tmp_path / "out", stages=("kl",), resume=True)
    short_run(run, tmp_path / "out", stages=("kl",), force=True)
