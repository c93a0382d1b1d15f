"""The output directory appears complete or not at all, also if a step fails."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from disk import snapshot, specs_of, write_checkpoint
from hybridize.checkpoints import (
    CheckpointReader,
    CheckpointWriter,
)
from hybridize.errors import HybridizeError, InputError


def test_an_output_is_replaced_only_at_the_end(tmp_path, few):
    output = tmp_path / "out"
    write_checkpoint(output, {"old": torch.zeros(3)})
    (output / "precious").write_text("data")
    old = snapshot(output)
    with pytest.raises(InputError, match="`force`"):
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


@pytest.mark.parametrize("exists", [False, True])
def test_an_output_is_written_where_a_link_leads(tmp_path, few, exists):
    """The link stays, and its disk gets the bytes: the working directory is there too."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "out").symlink_to("../chain")
    (tmp_path / "chain").symlink_to("disk/real")
    output = tmp_path / "links" / "out"
    if exists:
        write_checkpoint(tmp_path / "disk" / "real", {"old": torch.zeros(3)})
        with pytest.raises(InputError, match="`force`"):
            write_checkpoint(output, few)
    with CheckpointWriter(
        output, specs_of(few), config={}, max_shard_size=1, force=exists
    ) as writer:
        assert list((tmp_path / "disk").glob("real.partial-*"))
        for name, tensor in few.items():
            writer.add(name, tensor)
        writer.finish({"command": "test", "source": {"name": "x"}})
    assert sorted(os.listdir(tmp_path)) == ["chain", "disk", "links"]
    assert os.listdir(tmp_path / "links") == ["out"]
    assert os.listdir(tmp_path / "disk") == ["real"]
    assert output.is_symlink()
    with CheckpointReader(output) as reader:
        assert reader.names == list(few)


@pytest.mark.parametrize("target", ["out", "other", "gone/real", "file/real"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, few, target):
    (tmp_path / "file").touch()
    (tmp_path / "out").symlink_to(target)
    (tmp_path / "other").symlink_to("out")
    before = set(os.listdir(tmp_path))
    for force in (False, True):
        with pytest.raises(InputError, match="is a link"):
            write_checkpoint(tmp_path / "out", few, force=force)
    assert (tmp_path / "out").is_symlink()
    assert set(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
@pytest.mark.parametrize(("call", "done"), [(0, False), (0, True), (1, False)])
def test_an_interrupted_replacement_leaves_the_old_output(
    tmp_path, monkeypatch, few, failure, call, done
):
    """A replacement renames the old output, and then the new one.

    One of the two renames fails, before or after it is done.
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
            raise failure("left early")

    with pytest.raises(failure):
        leave()
    assert snapshot(tmp_path) == {}


def fails_after(calls: int, function, failure: BaseException):
    """Return ``function``, but every call after the first ``calls`` calls fails."""
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
        (os, "fdatasync", 0),  # a shard, in the background
        (os, "fdatasync", 1),
        (os, "fsync", 0),
        (os, "fsync", 3),  # the small files
        (Path, "write_bytes", 0),
        (Path, "write_bytes", 1),
        (Path, "write_bytes", 2),  # the provenance
    ],
)
def test_a_full_disk_or_an_interrupt_leaves_nothing(
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
        ("x" * 250, "File name too long"),  # together with the suffix of the working directory
        (f"{'x' * 300}/out", "File name too long"),
        ("/proc/none/out", "No such file"),
        ("/proc/none", "No such file"),
        ("in", "source"),
        ("in/out", "source"),
        (".", "source"),
    ],
)
def test_an_output_that_cannot_be_created_is_an_input_error(tmp_path, few, output, complaint):
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
    """The finished directory could not be renamed to such a path."""
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
from hybridize.checkpoints import CheckpointWriter, TensorSpec
specs = [TensorSpec(name, (1000,), "float32") for name in "ab"]
with CheckpointWriter(Path(sys.argv[1]), specs, config={}, max_shard_size=1) as writer:
    writer.add("a", torch.zeros(1000))
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_leaves_no_output(tmp_path, few):
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
