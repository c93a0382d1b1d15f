"""A run removes the working directories of killed runs beside its output, and nothing else."""

import fcntl
import os

from disk import write_checkpoint


def test_directories_of_killed_runs_are_removed(tmp_path, few, capsys):
    left = tmp_path / "out.partial-0123abcd"
    left.mkdir()
    (left / "model.safetensors").write_bytes(bytes(100))
    write_checkpoint(tmp_path / "out", few)
    assert os.listdir(tmp_path) == ["out"]
    assert capsys.readouterr().err == f"removed: {left}, left by an interrupted run\n"


def test_the_directory_of_a_running_command_is_not_removed(tmp_path, few, capsys):
    busy = tmp_path / "out.partial-0123abcd"
    busy.mkdir()
    descriptor = os.open(busy, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    write_checkpoint(tmp_path / "out", few)
    assert sorted(os.listdir(tmp_path)) == ["out", busy.name]
    assert capsys.readouterr().err == ""
    os.close(descriptor)


def test_two_runs_with_one_output_do_not_disturb_each_other(tmp_path, few):
    from disk import specs_of
    from hybridize.checkpoints import CheckpointReader, CheckpointWriter

    with CheckpointWriter(
        tmp_path / "out", specs_of(few), config={}, max_shard_size=1, force=True
    ) as slow:
        write_checkpoint(tmp_path / "out", few)
        for name, tensor in few.items():
            slow.add(name, tensor)
        slow.finish({"command": "test", "source": {"name": "x"}})
    assert os.listdir(tmp_path) == ["out"]
    with CheckpointReader(tmp_path / "out") as reader:
        assert len(reader.files) == len(few)


def test_similar_names_are_not_removed(tmp_path, few):
    names = [
        "out.partial-backup",
        "out.partial-0123abcd.old",
        "other.partial-0123abcd",
        "out.partial",
    ]
    for name in names:
        (tmp_path / name).mkdir()
    write_checkpoint(tmp_path / "out", few)
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "out"])


def test_a_replaced_output_is_reported_and_kept(tmp_path, few, capsys):
    old = tmp_path / "o[u]t.replaced-0123abcd"  # brackets have a meaning in glob patterns
    old.mkdir()
    write_checkpoint(tmp_path / "o[u]t", few)
    assert old.exists()
    assert capsys.readouterr().err.startswith(
        f"note: an interrupted run renamed the previous {tmp_path / 'o[u]t'} to {old};"
    )
