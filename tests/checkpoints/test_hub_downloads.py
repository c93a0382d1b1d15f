"""Of a repository on the hub, only what is needed is downloaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hub_stub import StubHub
from hybridize import convert, distill, inspect, load_model, prune, quantize, verify
from hybridize.__main__ import main
from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.header import parse_remote_header, read_header
from hybridize.checkpoints.header_reader import open_headers
from hybridize.checkpoints.hub import resolve
from hybridize.checkpoints.load import load_tokenizer
from hybridize.errors import InputError
from tiny import write_stock, write_tokenizer

NAME = "some/model"
BESIDE = (
    "consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "model.gguf",
    "original/consolidated.00.safetensors", "original/params.json", "original/tokenizer.model",
    "onnx/model.onnx", "onnx/config.json", "modeling_evil.py", "README.md", "training_args.bin",
    "checkpoint-10/model.safetensors", "flax_model.msgpack", "images/plot.png",
)  # fmt: skip
CARRIED = ("LICENSE", "USE_POLICY.md", "tokenizer.model.v3", "additional_chat_templates/a.jinja")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that has its weights several times over."""
    root = tmp_path_factory.mktemp("repository")
    write_stock(root, "llama")
    write_tokenizer(root)
    for name in (*BESIDE, *CARRIED):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    (root / "original.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    return root


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A repository with four shards, of which an old and useless fifth is left."""
    write_stock(tmp_path / "shards", "llama", shard="30KB")
    write_tokenizer(tmp_path / "shards")
    (tmp_path / "shards" / "model-00009-of-00009.safetensors").write_text("old")
    return tmp_path / "shards"


def cached(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def test_one_set_of_weights_is_downloaded(hub: StubHub, directory: Path) -> None:
    commit = hub.add(NAME, directory)
    path = resolve(NAME)
    assert path.name == commit
    wanted = {"config.json", "model.safetensors", *CARRIED, *TOKENIZER}
    assert set(hub.served) == cached(path) == wanted
    for name in wanted:
        assert (path / name).read_bytes() == (directory / name).read_bytes()


def test_shards_are_downloaded_with_their_index(hub: StubHub, shards: Path) -> None:
    hub.add(NAME, shards)
    path = resolve(NAME)
    assert cached(path) == cached(shards) - {"model-00009-of-00009.safetensors"}
    with CheckpointReader(path) as remote, CheckpointReader(shards) as local:
        assert remote.names == local.names
        assert [file.name for file in remote.files] == [file.name for file in local.files]


@pytest.mark.parametrize("named", [None, "other.safetensors", "other.safetensors.index.json"])
@pytest.mark.parametrize("kinds", [["single"], ["shards"], ["single", "shards"]])
def test_the_weights_are_those_of_a_directory(
    hub: StubHub, directory: Path, tmp_path: Path, kinds: list[str], named: str | None
) -> None:
    root, tensors = tmp_path / "root", load_file(directory / "model.safetensors")
    root.mkdir()
    config = json.loads((directory / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"transformers_weights": named}))
    for factor, kind in enumerate([*kinds, *([] if named is None else [named])], start=2):
        scaled = {name: tensor * factor for name, tensor in tensors.items()}
        if kind in ("single", "other.safetensors"):
            file = "model.safetensors" if kind == "single" else kind
            save_file(scaled, root / file, {"format": "pt"})
        else:
            stem = "model" if kind == "shards" else "other"
            names = sorted(scaled)
            parts = {f"{stem}-[{part}].safetensors": names[part::2] for part in (0, 1)}
            for file, part in parts.items():
                save_file({n: scaled[n] for n in part}, root / file, {"format": "pt"})
            weight_map = {n: file for file, part in parts.items() for n in part}
            index = root / f"{stem}.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": weight_map}))
    hub.add(NAME, root)
    with CheckpointReader(root) as local, open_headers(NAME) as headers:
        assert headers.names == local.names
        assert [file.name for file in headers.files] == [file.name for file in local.files]
        with CheckpointReader(resolve(NAME)) as remote:
            assert [file.name for file in remote.files] == [file.name for file in local.files]
            for name in local.names:
                assert remote.get(name).equal(local.get(name))
                assert headers.shape(name) == local.shape(name)
                assert headers.dtype(name) == local.dtype(name)
    weights = {file for file in hub.served if file.endswith(".safetensors")}
    assert weights == {file.name for file in local.files}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.safetensors": None}, r"no model\.safetensors and no .*consolidated\.safetensors"),
        ({"adapter_config.json": "{}"}, r"some/model/adapter_config\.json: is the configuration"),
        (
            {"config.json": None},
            r"some/model: has no config\.json on the hub; model\.gguf says that this is a GGUF",
        ),
        ({"config.json": "{"}, r"config\.json: not valid JSON"),
        (
            {
                "model.safetensors": None,
                "model.safetensors.index.json": '{"weight_map": {"a": "x"}}',
            },
            r"some/model/model\.safetensors\.index\.json: 'x' is not a safetensors file",
        ),
        (
            {
                "model.safetensors": None,
                "model.safetensors.index.json": '{"weight_map": {"a": "x.safetensors"}}',
            },
            r"index\.json: the shard 'x\.safetensors' is missing",
        ),
    ],
)
def test_wrong_repositories_are_refused_before_weights_are_downloaded(
    hub: StubHub, directory: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    shutil.copytree(directory, tmp_path / "changed")
    for name, text in change.items():
        path = tmp_path / "changed" / name
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
    hub.add(NAME, tmp_path / "changed")
    for function in (resolve, open_headers):
        with pytest.raises(InputError, match=words):
            function(NAME)
    assert not [name for name in hub.served if name.endswith(".safetensors")]


def test_pickled_weights_are_not_downloaded(hub: StubHub, directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "pickled")
    for path in (tmp_path / "pickled").glob("*.safetensors*"):
        path.unlink()
    hub.add(NAME, tmp_path / "pickled")
    for function in (resolve, open_headers):
        with pytest.raises(InputError, match=r"some/model/pytorch_model\.bin: pickled weights"):
            function(NAME)
    with pytest.raises(InputError, match=r"some/model/pytorch_model\.bin: pickled weights"):
        convert(NAME, tmp_path / "out", attention=1, dry_run=True)
    assert set(hub.served) <= {"config.json"}


def headers_only(hub: StubHub, directory: Path) -> bool:
    """Return whether no more was sent of the weights than twice their headers."""
    for name, sent in hub.served.items():
        if name.endswith(".safetensors"):
            length = int.from_bytes((directory / name).read_bytes()[:8], "little")
            if sent > 2 * (length + 100):
                return False
    return True


CONFIG_ONLY = {"config.json"}
COMMANDS = {
    "convert": (CONFIG_ONLY, ["convert", NAME, "-o", "out", "--attention", "1", "--dry-run"]),
    "prune": (CONFIG_ONLY, ["prune", NAME, "-o", "out", "--params", "90%", "--dry-run"]),
    "predict": (CONFIG_ONLY, ["bench", NAME, "--predict", "h100"]),
    "inspect": ({"config.json", "model.safetensors"}, ["inspect", NAME]),
    "quantize": (
        {"config.json", "model.safetensors"},
        ["quantize", NAME, "-o", "out", "--dry-run"],
    ),
    "distill": (
        {"config.json", "model.safetensors", *CARRIED, *TOKENIZER},
        ["distill", "STUDENT", "-o", "out", "--teacher", NAME, "--data", "t.txt", "--tokens", "256",
         "--seq-len", "32", "--dry-run"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_need_no_weights_download_none(
    hub: StubHub, directory: Path, tmp_path: Path, monkeypatch, capsys, command: str
) -> None:
    hub.add(NAME, directory)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hybridize.checkpoints.hub_headers._FIRST", 100)
    (tmp_path / "t.txt").write_text("abc")
    files, arguments = COMMANDS[command]
    if command == "distill":
        convert(directory, "STUDENT", attention=1)
    assert main([*arguments, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert set(hub.served) == files
    assert headers_only(hub, directory)
    if command != "prune":  # whose plan for a directory measures the weights
        assert (
            main([str(directory) if word == NAME else word for word in arguments] + ["--json"]) == 0
        )
        local = json.loads(capsys.readouterr().out)
        for result in (output, local):
            for name in ("source", "teacher", "directory", "rows"):
                result.pop(name, None)
        assert output == local
    assert not (tmp_path / "out").exists()


def test_pruning_with_measurements_downloads_the_weights(hub, directory, tmp_path) -> None:
    hub.add(NAME, directory)
    planned = prune(NAME, tmp_path / "out", params="90%", dry_run=True)
    assert planned.notes[0].startswith("no weights were downloaded, so all blocks")
    (tmp_path / "text.txt").write_text("abcd" * 400)
    text = str(tmp_path / "text.txt")
    planned = prune(NAME, tmp_path / "out", params="90%", dry_run=True, calibration=text)
    assert planned.block_importance is not None
    assert hub.served["model.safetensors"] == (directory / "model.safetensors").stat().st_size


def test_a_tokenizer_is_downloaded_without_weights(hub: StubHub, directory: Path) -> None:
    hub.add(NAME, directory)
    assert load_tokenizer(NAME)("abc").input_ids == load_tokenizer(directory)("abc").input_ids
    assert "model.safetensors" not in hub.served


def test_a_hub_that_ignores_ranges_sends_no_more_than_the_headers(
    hub: StubHub, shards: Path
) -> None:
    hub.add(NAME, shards)
    hub.ranges = False
    with open_headers(NAME) as headers, CheckpointReader(shards) as local:
        assert headers.names == local.names


def test_a_second_command_downloads_only_what_is_missing(hub: StubHub, directory: Path) -> None:
    hub.add(NAME, directory)
    inspect(NAME)
    hub.served.clear()
    load_model(NAME)
    assert set(hub.served) == {"model.safetensors", *CARRIED, *TOKENIZER}
    hub.served.clear()
    inspect(NAME)
    load_model(NAME)
    assert hub.served == {}


def test_a_part_of_the_weights_in_the_cache_is_not_taken_for_all(
    hub: StubHub, shards: Path, tmp_path: Path
) -> None:
    hub.add(NAME, shards)
    path = resolve(NAME, weights=False)
    first = sorted(shards.glob("model-*.safetensors"))[0]
    shutil.copy(first, path / first.name)
    plans = [
        convert(model, tmp_path / "out", attention=1, dry_run=True) for model in (NAME, shards)
    ]
    assert plans[0] == replace(plans[1], source=path)
    assert inspect(NAME).parameters == inspect(shards).parameters
    convert(NAME, tmp_path / "out", attention=1)
    assert verify(tmp_path / "out").problems == ()


def test_results_on_the_hub_are_verified_with_all_recorded_files(
    hub: StubHub, directory: Path, tmp_path: Path
) -> None:
    quantize(directory, tmp_path / "result", scheme="fp8")
    made = tmp_path / "result"
    record = json.loads((made / "hybridize.json").read_text())
    (made / "plot.png").write_bytes(b"plot")
    record["files"]["plot.png"] = {"bytes": 4, "sha256": "0" * 64}
    (made / "hybridize.json").write_text(json.dumps(record))
    hub.add("some/result", made)
    assert verify("some/result").problems == verify(made).problems
    assert len(verify("some/result").problems) == 1  # the made-up hash
    assert inspect("some/result").records[0]["source"]["name"] == directory.name


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_remote_headers_are_read_as_the_library_reads_them(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray((directory / "model.safetensors").read_bytes())
    length = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(8, 8 + length - 1))
        content[place] = data.draw(st.sampled_from(b'{}[],:"0123456789-eF'))
    if data.draw(st.booleans()):
        del content[len(content) - data.draw(st.integers(1, 100)) :]
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(content)
    results = []
    for read in (
        lambda: read_header(path),
        lambda: parse_remote_header(path, bytes(content[8 : 8 + length]), len(content)),
    ):
        try:
            results.append(list(read().items()))
        except InputError:
            results.append(None)
    # The library tolerates less than we do in places that change no tensor, such as metadata.
    if results[0] is not None:
        assert results[1] == results[0]


def test_the_record_names_the_repository_and_the_commit(
    hub: StubHub, directory: Path, tmp_path: Path
) -> None:
    commit = hub.add(NAME, directory)
    tag = hub.add(NAME, directory, revision="v1.0")
    convert(NAME, tmp_path / "out", attention=1)
    quantize(f"{NAME}@v1.0", tmp_path / "quantized", scheme="fp8")
    for output, expected in (("out", commit), ("quantized", tag)):
        (record,) = json.loads((tmp_path / output / "hybridize.json").read_text())["steps"]
        assert record["source"]["name"] == NAME
        assert record["source"]["revision"] == expected
        assert set(record["source"]["sha256"]) == {"model.safetensors"}
    for name in CARRIED:
        assert (tmp_path / "out" / name).read_bytes() == (directory / name).read_bytes()


def test_a_distillation_names_the_repository_and_the_commit_of_its_teacher(
    hub: StubHub, directory: Path, tmp_path: Path
) -> None:
    commit = hub.add(NAME, directory, revision="v1.0")
    convert(f"{NAME}@v1.0", tmp_path / "student", attention=1)
    (tmp_path / "text.txt").write_text("abcd" * 2000)
    distill(
        tmp_path / "student",
        tmp_path / "out",
        teacher=f"{NAME}@v1.0",
        data=[str(tmp_path / "text.txt")],
        tokens=128,
        seq_len=32,
        batch_size=2,
        validation_sequences=2,
    )
    _, record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["steps"]
    assert record["source"]["name"] == "student"
    assert (record["teacher"], record["teacher_revision"]) == (NAME, commit)
    assert record["options"]["teacher"] == f"{NAME}@v1.0"
    assert "/" not in record["options"]["data"][0]
    for name in CARRIED:
        assert (tmp_path / "out" / name).read_bytes() == (directory / name).read_bytes()
