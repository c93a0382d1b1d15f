"""A damaged checkpoint is read correctly, or refused in one line that names the file."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import hybridize
from disk import raw
from hybridize.checkpoints import CheckpointReader, weight_files
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.load import load_model
from hybridize.errors import InputError
from tiny import ARCHITECTURES, write_stock


def examples(count: int) -> settings:
    """Settings for ``count`` examples in one directory; each example writes its own files."""
    return settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """The weight files whose headers were read."""
    seen: list[Path] = []
    read_header = weight_files.read_header

    def note(path: Path) -> dict[str, Any]:
        seen.append(path)
        return read_header(path)

    monkeypatch.setattr(weight_files, "read_header", note)
    return seen


def read_all(directory: Path) -> dict[str, torch.Tensor] | None:
    """Return all tensors, or None if the checkpoint is refused; check the error message."""
    try:
        with CheckpointReader(directory, allow_nonfinite=True) as checkpoint:
            return {name: checkpoint.get(name) for name in checkpoint.names}
    except InputError as error:
        is_one_good_line(error, directory)
        return None


def is_one_good_line(error: InputError, directory: Path) -> None:
    text = str(error)
    assert text.startswith(f"{directory}"), text
    assert len(text) > len(str(directory)) + 5
    assert text.isprintable(), text  # no line breaks, among others
    assert error.exit_code == 2


BASE = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "flags": torch.tensor([True, False, True]),
    "ü.half": torch.ones(3, dtype=torch.float16),
}


@pytest.fixture
def sound(tmp_path) -> bytes:
    """An undamaged checkpoint of one file in ``tmp_path``; the value is the file's bytes."""
    save_file(BASE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return (tmp_path / "model.safetensors").read_bytes()


def agrees_with_the_library(directory: Path) -> bool:
    got = read_all(directory)
    if got is None:
        return False
    with safe_open(directory / "model.safetensors", "pt") as library:
        assert set(library.keys()) == set(got)
        for name, tensor in got.items():
            want = library.get_tensor(name)
            assert (tensor.dtype, tensor.shape) == (want.dtype, want.shape)
            assert raw(tensor) == raw(want)
    return True


@examples(400)
@given(
    edits=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=3),
    cut=st.just(0) | st.integers(1, 300),
    extra=st.just(b"") | st.binary(max_size=9),
)
def test_changed_bytes_are_refused_or_read_correctly(tmp_path, sound, edits, cut, extra):
    mangled = bytearray(sound)
    for offset, value in edits:
        mangled[offset % len(mangled)] = value
    content = bytes(mangled[: max(0, len(mangled) - cut)]) + extra
    (tmp_path / "model.safetensors").write_bytes(content)
    if agrees_with_the_library(tmp_path):
        assert len(content) == len(sound)  # otherwise it was truncated or extended
    else:
        assert content != sound


HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**64) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F4", "F8_E8M0", "F64", "", None]) | HEADERS,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | HEADERS,
        "data_offsets": st.tuples(st.integers(-1, 30), st.integers(-1, 30)) | HEADERS,
    }
)


@examples(300)
@given(header=st.dictionaries(st.text(max_size=3), ENTRIES | HEADERS, max_size=3) | HEADERS)
@example({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
@example({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}})
@example({"a": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}})
@example({"__metadata__": {"format": "pt"}})
@example({"__metadata__": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}})
def test_random_headers_are_refused_or_read_correctly(tmp_path, header):
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    agrees_with_the_library(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        bytes(8),
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        b"PK\x03\x04" + bytes(60),
    ],
)
def test_files_that_are_not_safetensors_are_refused(tmp_path, sound, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert read_all(tmp_path) is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_directory_in_place_of_a_file_is_refused(tmp_path, sound, name):
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    assert read_all(tmp_path) is None


SHARDS = {"a.safetensors": ["weight", "ü.half"], "b.safetensors": ["flags"]}
TRUE_MAP = {name: shard for shard, names in SHARDS.items() for name in names}


@pytest.fixture
def sharded(tmp_path) -> Path:
    """An undamaged checkpoint of two shards, with weight files outside it and in a subdirectory."""
    directory = tmp_path / "checkpoint"
    (directory / "sub").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    for shard, names in SHARDS.items():
        save_file({name: BASE[name] for name in names}, directory / shard)
    for outside in (tmp_path, directory / "sub"):
        save_file({"weight": BASE["weight"]}, outside / "outside.safetensors")
    return directory


def shard_names(directory: Path) -> st.SearchStrategy:
    return st.sampled_from(
        [
            *SHARDS, "missing.safetensors", "../outside.safetensors", "sub/outside.safetensors",
            f"{directory.parent}/outside.safetensors", "./a.safetensors", "sub/../a.safetensors",
            "..", ".", "", "/", "sub", "config.json", "a.safetensors\n", "a.safetensors/",
            "\0.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors", "~/a.safetensors",
            None, 7, True, [], {}, ["a.safetensors"],
        ]
    )  # fmt: skip


@examples(300)
@given(data=st.data())
def test_only_a_correct_index_is_accepted(sharded, opened, data):
    """An index is accepted only if every entry is true. No file that it does not need is opened."""
    weight_map: dict[str, Any] = dict(TRUE_MAP)
    for name in data.draw(st.lists(st.sampled_from([*BASE, "ghost", "", "a\nb"]), max_size=2)):
        weight_map[name] = data.draw(shard_names(sharded))
    for name in data.draw(st.lists(st.sampled_from(list(BASE)), max_size=1)):
        weight_map.pop(name)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    got = read_all(sharded)
    named = [shard for shard in weight_map.values() if isinstance(shard, str)]
    truth = {name: shard for name, shard in TRUE_MAP.items() if shard in named}
    assert (got is not None) == (weight_map == truth)
    if got is not None:
        assert {name: raw(t) for name, t in got.items()} == {
            name: raw(BASE[name]) for name in truth
        }
    assert {str(path) for path in opened} <= {str(sharded / shard) for shard in SHARDS}


@pytest.mark.parametrize("shard", ["../outside.safetensors", "{parent}/outside.safetensors"])
def test_a_shard_outside_the_directory_is_refused(sharded, opened, shard):
    shard = shard.format(parent=sharded.parent)
    index = {"weight_map": {"weight": shard}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json: tensor 'weight' is in .*beside the index"):
        CheckpointReader(sharded)
    assert opened == []


def test_a_tensor_in_two_shards_is_refused(sharded):
    save_file({"flags": BASE["flags"], "weight": BASE["weight"]}, sharded / "b.safetensors")
    index = {"weight_map": TRUE_MAP}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"b\.safetensors: contains tensor 'weight', .*another"):
        CheckpointReader(sharded)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
DOCUMENTS = (
    st.binary(max_size=20)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.sampled_from(
        [
            b"[" * 100_000,
            b'{"a":' * 900 + b"1" + b"}" * 900,
            b"9" * 5000,
            b"\xef\xbb\xbf{}",
            b"\xff\xfe{\0}\0",
            b"NaN",
            b'{"model_type": "llama"',
        ]
    )
)


@examples(150)
@given(document=DOCUMENTS | JSON.map(lambda value: json.dumps({"weight_map": value}).encode()))
def test_an_index_that_is_not_valid_is_refused(sharded, opened, document):
    (sharded / "model.safetensors.index.json").write_bytes(document)
    assert read_all(sharded) is None
    assert opened == []


@examples(150)
@given(document=DOCUMENTS)
def test_a_config_that_is_not_valid_is_refused(tmp_path, sound, document):
    (tmp_path / "config.json").write_bytes(document)
    try:
        with CheckpointReader(tmp_path) as checkpoint:
            read_config(checkpoint)
    except InputError as error:
        is_one_good_line(error, tmp_path)
    else:
        pytest.fail("no such document is a configuration")


VALUES = (
    st.integers(-2, 130)
    | st.floats()
    | st.sampled_from([None, True, "", "silu", "x\ny", [], {}, [1], {"a": 1}, 2**70, 10**400])
    | JSON
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A checkpoint of every architecture, and its configuration."""
    root = tmp_path_factory.mktemp("originals")
    for architecture in ARCHITECTURES:
        write_stock(root / architecture, architecture)
    hybridize.convert(root / "llama", root / "hybridize", attention=2, format="hybridize")
    return {
        path.name: (path, json.loads((path / "config.json").read_text())) for path in root.iterdir()
    }


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "hybridize"])
@settings(max_examples=80)
@given(data=st.data())
def test_changed_configs_load_or_are_refused_in_one_line(originals, architecture, data):
    """Change one field of a config to any value, or remove it."""
    directory, config = originals[architecture]
    field = data.draw(st.sampled_from(sorted(config)))
    if data.draw(st.booleans()):
        value = data.draw(VALUES)
        changed = {**config, field: value}
    else:
        changed = {key: value for key, value in config.items() if key != field}
    (directory / "config.json").write_text(json.dumps(changed))
    try:
        load_model(directory)
    except InputError as error:
        is_one_good_line(error, directory)
    finally:
        (directory / "config.json").write_text(json.dumps(config))


def test_a_snapshot_of_the_hub_cache_is_read(tmp_path):
    """In the hub's cache, every file is a link to a blob outside the snapshot's directory."""
    write_stock(tmp_path / "plain", "llama", shard="20KB")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        shutil.copy(file, blobs / str(number))
        os.symlink(f"../../blobs/{number}", snapshot / file.name)
    want, got = read_all(tmp_path / "plain"), read_all(snapshot)
    assert want is not None
    assert got is not None
    assert {name: raw(t) for name, t in got.items()} == {name: raw(t) for name, t in want.items()}
    hybridize.convert(snapshot, tmp_path / "out", attention=2)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    assert hybridize.verify(tmp_path / "out").problems == ()
