"""Runs that read what the teacher computed earlier: the same results, and no teacher."""

import json

import pytest
import torch
from distilling import losses, short_run, write_pair
from safetensors.torch import load_file

from hybridize.compress.distill import block_cache, pipeline
from hybridize.compress.distill.block_cache import BlockCache
from hybridize.compress.distill.distributed import Ranks
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.compress.distill.trainer import Trainer
from hybridize.errors import HybridizeError, InputError

STORED = {"cache_teacher": 8, "cache_blocks": 30_000, "data_tokens": 16 * 24}
"""Twenty training sequences, so that the second epoch begins at the fifth of eight steps.

One sequence takes 2 x 2 blocks x 16 tokens x 32 channels x 2 bytes, so that 7 of 24 are stored.
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def done(pair, tmp_path_factory):
    """The output of an uninterrupted run that keeps nothing."""
    output = tmp_path_factory.mktemp("done") / "out"
    short_run(pair, output, **STORED)
    return output


def assert_same_run(directory, expected):
    assert losses(directory) == losses(expected)
    ours, theirs = (load_file(each / "model.safetensors") for each in (directory, expected))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def fail(*_):
    raise AssertionError("the teacher was asked again")


def test_runs_share_what_the_teacher_computed(pair, done, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    short_run(pair, tmp_path / "one", cache_dir=cache, **STORED)
    assert_same_run(tmp_path / "one", done)
    files = sorted(path.name for path in (cache / "teacher").iterdir())
    assert sum(name.startswith("blocks-") for name in files) == 7
    assert sum(name.startswith("predictions-8-") for name in files) == 1
    assert len(files) == 8
    record = json.loads((tmp_path / "one" / "hybridize.json").read_text())["steps"][-1]
    assert record["options"]["cache_blocks"] == 30_000
    assert "cache_dir" not in record["options"]

    monkeypatch.setattr(TeacherCache, "_predictions", fail)
    monkeypatch.setattr(BlockCache, "_store", fail)
    short_run(pair, tmp_path / "two", cache_dir=cache, **STORED)
    assert_same_run(tmp_path / "two", done)
    # Other seeds, learning rates and tokens need the teacher no more than the same ones.
    rates = {"learning_rates": {"align": 1e-2}, "stage_tokens": {"align": 1024, "kl": 256}}
    short_run(pair, tmp_path / "three", cache_dir=cache, **STORED, **rates)
    assert sorted(path.name for path in (cache / "teacher").iterdir()) == files


def test_align_from_stored_blocks_learns_the_same(pair, tmp_path):
    align = {"stages": ("align",), "data_tokens": 16 * 24}
    short_run(pair, tmp_path / "run", **align)
    short_run(pair, tmp_path / "stored", cache_blocks="1MB", **align)
    run, stored = (
        [line.get("loss") or line["validation"] for line in losses(tmp_path / name)]
        for name in ("run", "stored")
    )
    assert stored == pytest.approx(run, rel=1e-3)  # bfloat16
    assert stored != run


@pytest.mark.parametrize("stop", [3, 6, 11])
def test_a_resumed_run_with_stored_blocks_writes_the_same_bits(
    pair, done, tmp_path, monkeypatch, stop
):
    train_step, steps = Trainer._train_step, []

    def stopping(trainer):
        if len(steps) == stop:
            raise HybridizeError("stopped")
        steps.append(1)
        train_step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, tmp_path / "out", save_every=2, **STORED)
    short_run(pair, tmp_path / "out", save_every=2, resume=True, **STORED)
    assert_same_run(tmp_path / "out", done)
    assert not (tmp_path / "out.distill").exists()


def test_a_run_that_stopped_while_storing_blocks_writes_the_same_bits(
    pair, done, tmp_path, monkeypatch
):
    """Half of the files of a pass are missing or damaged."""
    write = block_cache.write

    def stopping(path, key, tensors):
        if len(list(path.parent.glob("blocks-*"))) == 4:
            raise HybridizeError("stopped")
        write(path, key, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(block_cache, "write", stopping)
        with pytest.raises(HybridizeError, match="stopped"):
            short_run(pair, tmp_path / "out", **STORED)
    stored = sorted((tmp_path / "out.distill" / "teacher").glob("blocks-*"))
    assert len(stored) == 4
    stored[1].write_bytes(stored[1].read_bytes()[:-7] + b"damaged")
    stored[2].write_bytes(stored[0].read_bytes())
    short_run(pair, tmp_path / "out", resume=True, **STORED)
    assert_same_run(tmp_path / "out", done)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cache_blocks": "1MB", "stages": ("kl",)}, "`cache_blocks` is for the stages align, but"),
        ({"cache_blocks": 4095}, "`cache_blocks=4.0 KiB`: one sequence of 16 tokens takes 4.0 KiB"),
        ({"cache_blocks": "much"}, "`cache_blocks=much`: give a size"),
    ],
    ids=str,
)
def test_bad_options(pair, tmp_path, options, complaint):
    with pytest.raises(InputError, match=complaint):
        short_run(pair, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_cache_directory_that_cannot_be_created_is_bad_input(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"`cache_dir=.*file`: cannot be created: File exists"):
        short_run(pair, tmp_path / "out", cache_dir=tmp_path / "file", **STORED)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_several_processes_cannot_store_blocks(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "join", lambda _: Ranks(0, 2))
    with pytest.raises(InputError, match="`cache_blocks` needs a single process"):
        short_run(pair, tmp_path / "out", **STORED)
