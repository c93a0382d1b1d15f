"""Checkpoints against the safetensors library and transformers; and writes that fail midway."""

import errno
import hashlib
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from disk import Tensors, raw, snapshot, specs_of, write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hybridize.errors import HybridizeError, InputError
from hybridize.modeling.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    read_provenance,
)
from hybridize.modeling.checkpoint.finite import is_finite
from hybridize.modeling.checkpoint.header import DTYPES
from tiny import tokens, write_stock


@pytest.fixture
def few() -> Tensors:
    """Three small tensors."""
    return {
        "a": torch.arange(12.0).reshape(3, 4),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.ones(7, dtype=torch.bfloat16),
    }


FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]


def of_every_kind() -> dict[str, torch.Tensor]:
    """Random bits in every dtype and odd shapes, strided views, and names beyond ASCII."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for code, dtype in DTYPES.items():
        for shape in [(), (0,), (3,), (2, 0, 5), (4, 5)]:
            count = math.prod(shape) * dtype.itemsize
            bits = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
            bits = bits & 1 if dtype == torch.bool else bits
            tensors[f"{code}.{'x'.join(map(str, shape))}"] = bits.view(dtype).reshape(shape)
    grid = torch.arange(24.0).reshape(4, 6)
    tensors |= {"transposed": grid.T, "stepped": grid[::2, 1::3], "broadcast": grid[0].expand(3, 6)}
    tensors |= {"größe.重み.✓": grid.clone(), 'quoted " \\ \n': grid.clone(), "": grid.clone()}
    return tensors


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    return (got.dtype, got.shape, raw(got)) == (want.dtype, want.shape, raw(want))


@pytest.mark.parametrize("limit", [1 << 30, 100, 1], ids=["one file", "shards", "a tensor each"])
def test_what_we_write_the_library_reads(tmp_path, limit):
    want = of_every_kind()
    write_checkpoint(tmp_path / "out", want, max_shard_size=limit)
    got = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}  # without it transformers refuses
        got |= load_file(file)
    assert got.keys() == want.keys()
    assert [name for name in want if not same(got[name], want[name])] == []


def test_what_the_library_writes_we_read(tmp_path):
    want = {name: tensor.contiguous() for name, tensor in of_every_kind().items()}
    save_file(want, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "test"}')
    with CheckpointReader(tmp_path, allow_nonfinite=True) as reader:
        assert set(reader.names) == set(want)
        assert [name for name in want if not same(reader.get(name), want[name])] == []
        for name, tensor in want.items():
            facts = (reader.shape(name), reader.dtype(name), reader.nbytes(name))
            assert facts == (tuple(tensor.shape), tensor.dtype, tensor.nbytes)


@pytest.mark.parametrize("most", [1, 7, 4096])
def test_writes_may_be_cut_short(tmp_path, monkeypatch, few, most):
    """The system may write less than it was asked to."""
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:most]))
        write_checkpoint(tmp_path / "out", few)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(same(got[name], few[name]) for name in few)
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["files"]
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert record["model.safetensors"]["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("limit", [1, 2048, 20_000, 1 << 30])
def test_shards_are_laid_out_as_transformers_lays_them_out(tmp_path, limit):
    model = write_stock(tmp_path / "in", "llama")
    want = dict(model.state_dict())
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    write_checkpoint(tmp_path / "out", want, config=config, max_shard_size=limit)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    held = {file.name: load_file(file) for file in files}
    for shard in held.values():
        assert len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= limit
    index = tmp_path / "out" / "model.safetensors.index.json"
    if limit == 1 << 30:
        assert list(held) == ["model.safetensors"]
        assert not index.exists()
    else:
        count = len(files)
        assert list(held) == [
            f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
        ]
        record = json.loads(index.read_text())
        assert record["metadata"]["total_size"] == sum(tensor.nbytes for tensor in want.values())
        assert record["weight_map"] == {name: file for file in held for name in held[file]}
        assert list(record["weight_map"]) == list(want)
    ids = tokens()
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, model(ids).logits)


def test_shards_that_transformers_wrote_are_read(tmp_path):
    want = write_stock(tmp_path, "llama", shard="20KB").state_dict()
    with CheckpointReader(tmp_path) as reader:
        assert len(reader.files) > 2
        assert set(reader.names) == set(want)
        # Against the order of the files, so that they are closed and opened again.
        assert all(same(reader.get(name), want[name]) for name in reversed(reader.names))


@pytest.mark.parametrize(
    ("calls", "complaint"),
    [
        ([("b", "b")], "expected .*'a'.*got .*'b'"),
        ([("a", "b")], r"got .*\(5,\)"),
        ([("a", "half")], "got .*float16"),
        ([("a", "a"), ("a", "a")], "expected .*'b'.*got .*'a'"),
        ([("a", "a"), ("b", "b"), ("c", "c"), ("c", "c")], "expected None"),
        ([], "'a'.* was never added"),
        ([("a", "a"), ("b", "b")], "'c'.* was never added"),
    ],
    ids=["order", "shape", "dtype", "twice", "too many", "none", "too few"],
)
def test_mistakes_of_the_caller_are_refused(tmp_path, few, calls, complaint):
    writer = CheckpointWriter(tmp_path / "out", specs_of(few), config={}, max_shard_size=60)
    tensors = few | {"half": few["a"].half()}

    def misuse() -> None:
        with writer:
            for name, tensor in calls:
                writer.add(name, tensors[tensor])
            writer.finish({})

    with pytest.raises(RuntimeError, match=complaint):
        misuse()
    assert snapshot(tmp_path) == {}


CARRIED = {
    "tokenizer.json": b'{"a": "\xc3\xa4"}',
    "tokenizer_config.json": b"{}",
    "tokenizer.model": bytes(range(256)),
    "vocab.txt": b"a\r\nb\n",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "generation_config.json": b'{"eos_token_id": 2}',
    "LICENSE.txt": b"free",
}
LEFT_BEHIND = {
    "modeling_evil.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "training_args.bin": b"pickle",
    "optimizer.pt": b"pickle",
    "README.md": b"about another model",
    "other.safetensors": b"weights",
}


def test_only_harmless_files_are_carried_along(tmp_path, few):
    source = tmp_path / "in"
    write_checkpoint(source, few)
    for name, content in (CARRIED | LEFT_BEHIND).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    (source / "vocab.txt").rename(tmp_path / "blob")
    (source / "vocab.txt").symlink_to("../blob")  # as in the hub's cache
    before = snapshot(source)
    write_checkpoint(
        tmp_path / "out", few, source=source, extra_files={"own.py": "x = 'ü'\n"}, config={"a": 1}
    )
    assert snapshot(source) == before
    made = {"config.json", "model.safetensors", "hybridize.json", "own.py"}
    files = {name for name, kind in snapshot(tmp_path / "out").items() if kind != "directory"}
    assert files == made | set(CARRIED)
    for name, content in CARRIED.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert not (tmp_path / "out" / "vocab.txt").is_symlink()
    assert (tmp_path / "out" / "own.py").read_text("utf-8") == "x = 'ü'\n"
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"a": 1}
    record = json.loads((tmp_path / "out" / "hybridize.json").read_text())["files"]
    assert record == {
        name: {
            "sha256": hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest(),
            "bytes": (tmp_path / "out" / name).stat().st_size,
        }
        for name in files - {"hybridize.json"}
    }


def test_the_history_grows_by_a_step_at_a_time(tmp_path, few):
    source = None
    for command in ("one", "two", "three"):
        write_checkpoint(tmp_path / command, few, source=source, command=command)
        source = tmp_path / command
    steps = read_provenance(source)
    assert [step["command"] for step in steps] == ["one", "two", "three"]
    assert steps[:2] == read_provenance(tmp_path / "two")
    for step in steps:
        assert step["versions"]["torch"] == importlib.metadata.version("torch")
        created = datetime.fromisoformat(step["created"])
        assert created.utcoffset() == timedelta(0)
        assert abs(datetime.now(created.tzinfo) - created) < timedelta(minutes=5)


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        '{"format_version": 2, "steps": []}',
        '{"format_version": 1, "steps": {}}',
        '{"format_version": 1, "steps": [7]}',
        '{"format_version": 1, "steps": [{"command": "x", "created": "y", "source": {}}]}',
    ],
)
def test_a_history_that_cannot_be_read_stops_the_work_before_it_begins(tmp_path, few, record):
    write_checkpoint(tmp_path / "in", few)
    (tmp_path / "in" / "hybridize.json").write_text(record)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"in/hybridize\.json: "):
        write_checkpoint(tmp_path / "out", few, source=tmp_path / "in")
    assert snapshot(tmp_path) == before


def test_special_floats_are_spelt_as_transformers_spells_them(tmp_path, few):
    """JSON has no infinity; the config.json of older Nemotron-H and Mamba-2 checkpoints has."""
    config = {"limit": [0.0, math.inf], "deep": {"low": -math.inf}, "plain": 1.5}
    write_checkpoint(tmp_path / "out", few, config=config)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "limit": [0.0, {"__float__": "Infinity"}],
        "deep": {"low": {"__float__": "-Infinity"}},
        "plain": 1.5,
    }


def test_an_output_is_replaced_at_the_end_and_not_before(tmp_path, few):
    output = tmp_path / "out"
    write_checkpoint(output, {"old": torch.zeros(3)})
    (output / "precious").write_text("data")
    old = snapshot(output)
    with pytest.raises(InputError, match="--force"):
        write_checkpoint(output, few)
    with CheckpointWriter(output, specs_of(few), config={}, max_shard_size=1, force=True) as writer:
        for name, tensor in few.items():
            writer.add(name, tensor)
            assert snapshot(output) == old
        writer.finish({"command": "test", "source": {"name": "x"}})
    assert os.listdir(tmp_path) == ["out"]
    assert not (output / "precious").exists()
    with CheckpointReader(output) as reader:
        assert reader.names == list(few)


def test_replacing_a_link_spares_what_it_points_to(tmp_path, few):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("data")
    (tmp_path / "out").symlink_to("elsewhere")
    (tmp_path / "loop").symlink_to("loop")
    before = snapshot(tmp_path / "elsewhere")
    for name in ("out", "loop"):
        with pytest.raises(InputError, match="--force"):
            write_checkpoint(tmp_path / name, few)
        write_checkpoint(tmp_path / name, few, force=True)
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name / "model.safetensors").exists()
    assert snapshot(tmp_path / "elsewhere") == before
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "loop", "out"]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
@pytest.mark.parametrize(("call", "done"), [(0, False), (0, True), (1, False)])
def test_an_interrupted_replacement_leaves_the_old_output(
    tmp_path, monkeypatch, few, failure, call, done
):
    """Two renames put the new output in place: the old one goes aside, the new one moves in.

    The failure strikes before or after the call that it strikes has done its work.
    """
    output = tmp_path / "out"
    write_checkpoint(output, {"old": torch.zeros(3)})
    old = snapshot(output)
    rename, calls = Path.rename, []

    def fail_once(self, target):
        calls.append(target)
        if len(calls) != call + 1:
            return rename(self, target)
        if done:
            rename(self, target)
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_once)
        wanted = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else HybridizeError
        with pytest.raises(wanted):
            write_checkpoint(output, few, force=True)
    assert snapshot(output) == old
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("output", ["out", "new/parents/out"])
@pytest.mark.parametrize("added", [0, 1, 3])
@pytest.mark.parametrize("failure", [ValueError, HybridizeError, KeyboardInterrupt, SystemExit])
def test_leaving_the_block_early_removes_everything(tmp_path, few, failure, added, output):
    writer = CheckpointWriter(tmp_path / output, specs_of(few), config={}, max_shard_size=60)

    def leave() -> None:
        with writer:
            for name, tensor in list(few.items())[:added]:
                writer.add(name, tensor)
            assert list(tmp_path.rglob("out.partial-*"))
            raise failure

    with pytest.raises(failure):
        leave()
    assert snapshot(tmp_path) == {}


def fails_after(calls: int, function, failure: BaseException):
    """``function``, which works so many times and then fails for good."""
    count = iter(range(calls))

    def wrapped(*arguments, **options):
        if next(count, None) is None:
            raise failure
        return function(*arguments, **options)

    return wrapped


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failure", [NO_SPACE, KeyboardInterrupt()], ids=["full", "interrupt"])
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (Path, "mkdir", 0),
        (os, "write", 0),  # the first header, which is written on entering
        (os, "write", 1),  # the first tensor
        (os, "write", 2),  # the header of the second shard
        (os, "write", 4),  # the last tensor
        (os, "fsync", 0),  # a shard, in the background
        (os, "fsync", 3),  # the small files
        (Path, "write_text", 0),
        (Path, "write_text", 2),
    ],
)
def test_a_full_disk_and_ctrl_c_leave_nothing(
    tmp_path, monkeypatch, few, owner, name, calls, failure
):
    output = tmp_path / "new" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails_after(calls, getattr(owner, name), failure))
        with pytest.raises((HybridizeError, KeyboardInterrupt)) as caught:
            write_checkpoint(output, few, max_shard_size=60)
    assert snapshot(tmp_path) == {}
    if failure is NO_SPACE:
        assert caught.value.exit_code == 1
        assert str(caught.value) == f"{output}: no space left on the disk; nothing was left behind"
    else:
        assert caught.type is KeyboardInterrupt


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("file/out", "not a directory"),
        ("file", "exists already"),
        ("x" * 300, "File name too long"),
        ("x" * 250, "File name too long"),  # with what is appended while it is written
        (f"{'x' * 300}/out", "File name too long"),
        ("/proc/none/out", "No such file"),
        ("/proc/none", "No such file"),
        ("in", "source"),
        ("in/out", "source"),
        (".", "source"),
    ],
)
def test_an_output_that_cannot_be_is_the_fault_of_the_input(tmp_path, few, output, complaint):
    if output.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    (tmp_path / "file").touch()
    write_checkpoint(tmp_path / "in", few)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=complaint) as caught:
        write_checkpoint(tmp_path / output, few, source=tmp_path / "in")
    assert str(tmp_path / output) in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("output", [".", "..", "sub/.."])
def test_an_output_without_a_name_is_refused(tmp_path, monkeypatch, few, output):
    """Nothing can be written beside it and renamed to it."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="name"):
        write_checkpoint(Path(output), few, force=True)
    assert snapshot(tmp_path) == before


KILLED = """
import sys, time
from pathlib import Path
import torch
from hybridize.modeling.checkpoint import CheckpointWriter, TensorSpec
specs = [TensorSpec(name, (1000,), torch.float32) for name in "ab"]
with CheckpointWriter(Path(sys.argv[1]), specs, config={}, max_shard_size=1) as writer:
    writer.add("a", torch.zeros(1000))
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_leaves_nothing_under_the_outputs_name(tmp_path, few):
    output = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.kill()
    assert not output.exists()
    assert all(name.startswith("out.partial-") for name in os.listdir(tmp_path))
    write_checkpoint(output, few)
    with CheckpointReader(output) as reader:
        assert reader.names == list(few)


def special_values(dtype: torch.dtype) -> dict[str, float]:
    limits = torch.finfo(dtype)
    return {
        "zero": 0.0,
        "largest": limits.max,
        "least": limits.min,
        "tiny": limits.smallest_normal,
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("background", ["zero", "largest", "least"])
def test_is_finite_sees_one_bad_value_anywhere(dtype, background):
    """Among the largest values, too, whose sum would overflow."""
    values = special_values(dtype)
    for size in (1, 7, 64, 1003):
        for where in {0, size // 2, size - 1}:
            for value in values.values():
                tensor = torch.full((size,), values[background], dtype=torch.float64).to(dtype)
                tensor[where] = torch.tensor(value, dtype=torch.float64).to(dtype)
                want = bool(tensor.to(torch.float64).isfinite().all())
                assert is_finite(tensor) == want, (size, where, value)


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.itemsize <= 2], ids=str)
def test_is_finite_knows_every_bit_pattern(dtype):
    if dtype.itemsize == 1:
        patterns = torch.arange(256, dtype=torch.uint8).view(dtype)
    else:  # all exponents and signs, with mantissas of every kind
        high = torch.arange(-(2**15), 2**15, 16).repeat_interleave(4)
        patterns = (high + torch.tensor([0, 1, 8, 15]).repeat(4096)).to(torch.int16).view(dtype)
    want = patterns.to(torch.float64).isfinite().tolist()
    assert [is_finite(pattern) for pattern in patterns] == want


def test_is_finite_of_other_kinds():
    assert is_finite(torch.tensor([True, False]))
    assert is_finite(torch.tensor([2**63 - 1]))
    assert is_finite(torch.empty(0))
    assert is_finite(torch.empty(2, 0, dtype=torch.float8_e5m2))
    assert is_finite(torch.tensor([1 + 2j]))
    assert not is_finite(torch.tensor([complex(0, math.nan)]))
    assert not is_finite(torch.tensor([[1.0, math.nan]]).T)


def test_a_tensor_that_is_not_finite_is_named_unless_allowed(tmp_path):
    write_checkpoint(tmp_path / "x", {"good": torch.ones(2), "bad": torch.tensor([0, math.inf])})
    with CheckpointReader(tmp_path / "x") as reader:
        assert reader.get("good").sum() == 2
        with pytest.raises(InputError, match=r"model\.safetensors: tensor 'bad'.*allow-nonfinite"):
            reader.get("bad")
    with CheckpointReader(tmp_path / "x", allow_nonfinite=True) as reader:
        assert reader.get("bad")[1] == math.inf


@pytest.mark.parametrize("ahead", [False, True])
def test_hashes_are_those_of_hashlib(tmp_path, ahead):
    tensors = {name: torch.rand(300_000) for name in "abc"}  # more than a chunk each
    write_checkpoint(tmp_path / "x", tensors, max_shard_size=1)
    with CheckpointReader(tmp_path / "x") as reader:
        if ahead:
            reader.hash_in_background()
        hashes = reader.sha256()
    assert hashes == {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest()
        for f in (tmp_path / "x").glob("*.safetensors")
    }
    assert len(hashes) == 3


def test_hashing_ends_with_the_reader(tmp_path):
    """Or an interrupted conversion would not come to its end before a large source is hashed."""
    size = 1 << 34
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # a hole: takes no room, but many seconds to hash
    (tmp_path / "config.json").write_text("{}")

    def hashing() -> bool:
        return any(thread.name.startswith("sha256") for thread in threading.enumerate())

    with CheckpointReader(tmp_path) as reader:
        reader.hash_in_background()
        assert hashing()
    deadline = time.monotonic() + 2
    while hashing() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not hashing()


def test_parts_are_stacked_by_rows(tmp_path):
    parts = [torch.randn(3, 5), torch.randn(5, 2).T, torch.randn(1, 5)]
    specs = [TensorSpec("stacked", (6, 5), torch.float32)]
    with CheckpointWriter(tmp_path / "out", specs, config={}, max_shard_size=10**6) as writer:
        for wrong in ([parts[0]], [*parts, parts[0].double()], [parts[0], torch.randn(3, 4)]):
            with pytest.raises(RuntimeError, match="expected"):
                writer.add("stacked", *wrong)
        writer.add("stacked", *parts)
        writer.finish({"command": "test", "source": {"name": "test"}})
    assert torch.equal(
        load_file(tmp_path / "out" / "model.safetensors")["stacked"], torch.cat(parts)
    )
