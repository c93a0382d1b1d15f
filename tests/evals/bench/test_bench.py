"""`hybridize bench`: its figures, the order of its runs, its output and its errors."""

import json
import re
import statistics

import pytest
import torch

import hybridize
from hybridize.__main__ import main
from hybridize.evals.bench import bench as module
from hybridize.evals.bench.results import Spread
from hybridize.evals.bench.runner import Sample
from tiny import write_stock

LAYERS, KV_HEADS, HEAD_DIM = 4, 2, 8  # of tiny.py's llama
SMALL = ("--prompt-len", "9,17", "--gen-len", "4", "--batch-size", "1,3", "--repeats", "2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bench") / "llama"
    write_stock(directory, "llama")
    return directory


@pytest.fixture(scope="module")
def hybrid(llama):
    directory = llama.parent / "hybrid"
    assert main(["convert", str(llama), "-o", str(directory), "--keep", "2", "--quiet"]) == 0
    return directory


def test_the_command_measures_a_grid_and_writes_it(capsys, llama, hybrid, tmp_path):
    capsys.readouterr()
    out, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    command = ["bench", str(hybrid), "--baseline", str(llama), *SMALL, "--json"]
    assert main([*command, "-o", str(out), "--plot", str(plot)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert printed["hybridize"]["command"] == "bench"
    assert {"processor", "threads", "torch"} <= printed["machine"].keys()
    rows = printed["rows"]
    sizes = [(r["point"]["batch_size"], r["point"]["prompt_len"], r["model"]) for r in rows]
    assert sizes == [(b, p, str(m)) for b in (1, 3) for p in (9, 17) for m in (llama, hybrid)]
    for row in rows:
        batch, tokens = row["point"]["batch_size"], row["point"]["prompt_len"] + 4 - 1
        layers = LAYERS if row["model"] == str(llama) else 1
        # The last new token is never read, so it is not in the cache.
        assert row["kv_bytes"] == batch * layers * 2 * KV_HEADS * HEAD_DIM * tokens * 4
        assert (row["state_bytes"] > 0) == (layers == 1)
        assert (row["ratios"] is None) == (row["model"] == str(llama))
        assert row["prefill"]["low"] <= row["prefill"]["median"] <= row["prefill"]["high"]


def test_the_table_shows_slow_models_and_single_rounds_as_they_are(
    capsys, monkeypatch, llama, hybrid
):
    """As on a CPU: minutes for a long prompt, and a few tokens per second."""
    monkeypatch.setattr(module, "WARM_UPS", 0)
    monkeypatch.setattr(
        "hybridize.evals.bench.runner.Runner.run", lambda self, point, seed: next(runs)
    )
    command = ["bench", str(hybrid), "--baseline", str(llama), "--prompt-len", "9"]
    for repeats in ("1", "2"):
        runs = iter([Sample(71.3, 0.4, 8, 0, None), Sample(0.05, 30.0, 8, 0, None)] * 2)
        assert main([*command, "--gen-len", "4", "--repeats", repeats]) == 0
        printed = capsys.readouterr().out
        assert {"71.3 s", "50.0 ms", "0.10"} <= set(re.split(r"\s{2,}", printed))
        assert "7.50" in printed  # 3 tokens in 0.4 s
        assert ("±" in printed) == (repeats == "2")
        assert ("one round;" in printed) == (repeats == "1")


def test_state_bytes_equal_those_of_inspect(hybrid):
    (cost,) = hybridize.inspect(hybrid, contexts=(1,)).cache
    result = hybridize.bench(hybrid, prompt_len=[5], gen_len=2, batch_size=[2], repeats=1)
    assert result.rows[0].state_bytes == 2 * cost.state


def test_models_alternate_and_ratios_are_computed_per_round(monkeypatch, llama, hybrid):
    order = []

    def fake_run(self, point, seed):
        order.append((self.name, self.backend))
        # The machine slows down with every run; the hybrid is always twice as fast.
        slow = len(order) * (1.0 if self.name == str(llama) else 0.5)
        return Sample(slow, 2 * slow, 8, 0, None)

    monkeypatch.setattr("hybridize.evals.bench.runner.Runner.run", fake_run)
    result = hybridize.bench(
        [llama, hybrid], baseline=llama, prompt_len=[10], gen_len=5, batch_size=[2], repeats=3
    )
    assert order == [(str(m), "hybridize") for _ in range(4) for m in (llama, hybrid)]
    first, second = result.rows
    # Rounds 2 to 4 count: runs 3, 5, 7 of the first model and 4, 6, 8 of the second.
    assert first.first_token.median == 5
    assert first.prefill.median == statistics.median([20 / 3, 20 / 5, 20 / 7])
    assert first.decode.median == statistics.median([2 * 4 / 6, 2 * 4 / 10, 2 * 4 / 14])
    assert first.decode_each.median == first.decode.median / 2
    assert first.throughput.median == statistics.median([10 / 9, 10 / 15, 10 / 21])
    assert second.ratios.prefill.median == statistics.median([3 / 2, 5 / 3, 7 / 4])
    assert second.ratios.throughput == second.ratios.prefill
    assert first.ratios is None
    assert first.peak_bytes is None


def test_both_backends_run_the_same_directory(hybrid):
    result = hybridize.bench(
        hybrid, baseline=hybrid, backend=("transformers", "hybridize"),
        prompt_len=[6], gen_len=2, batch_size=[1], repeats=1,
    )  # fmt: skip
    assert [row.backend for row in result.rows] == ["transformers", "hybridize"]
    assert [row.ratios is None for row in result.rows] == [True, False]
    assert len({row.kv_bytes for row in result.rows}) == 1


def test_peak_memory_includes_a_temporary_tensor():
    from hybridize.evals.bench.peak_memory import PeakMemory

    memory = PeakMemory(torch.device("cpu"))
    memory.start()
    size = 64 << 20
    torch.ones(size // 4).sum()
    taken = memory.stop()
    if taken is None:
        pytest.skip("this system does not report the peak memory of a process")
    assert size * 0.9 < taken < size * 1.5


def test_a_spread_is_median_and_quartiles():
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread(4.0, 3.0, 5.0).deviation == 0.25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt-len", "9,x"], "--prompt-len 9,x: give a whole number from 1"),
        (["--prompt-len", ""], "--prompt-len '': give at least 1"),
        (["--batch-size", "0"], "--batch-size 0: give a whole number from 1"),
        (["--gen-len", "1"], "--gen-len 1: give a whole number from 2"),
        (["--backend", "vllm"], "--backend vllm: choose one of hybridize, transformers"),
        (["--batch-size", "max"], "only for models on a GPU whose steps are recorded"),
        (["--batch-size", "max,1"], "only for models on a GPU whose steps are recorded"),
        (["--preset", "paper"], "--batch-size max"),
        (["--decoding", "graph"], "--decoding graph: "),
        (["--decoding", "fast"], "--decoding fast: choose one of auto, eager, graph"),
        (["--predict", "h100", "--decoding", "eager"], "--decoding has no meaning"),
        (["--gpus", "2"], "--gpus works only with --predict"),
        (["--predict", "h100", "--gpus", "0"], "--gpus 0: give a whole number from 1"),
        (["--predict", "h100", "--repeats", "3"], "--repeats has no meaning with --predict"),
        (["--predict", "h100", "--prompt-len", "1,2"], "--prompt-len takes one value"),
        (["--predict", "tpu"], "--predict tpu: choose one of a100"),
    ],
)
def test_a_wrong_option_is_a_one_line_error(capsys, llama, options, words):
    capsys.readouterr()
    assert main(["bench", str(llama), *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_an_existing_output_is_refused_before_any_run(capsys, monkeypatch, llama, tmp_path):
    monkeypatch.setattr(module, "_list_runs", lambda *_: pytest.fail("ran"))
    output = tmp_path / "bench.json"
    output.write_text("mine")
    assert main(["bench", str(llama), "-o", str(output)]) == 2
    assert output.read_text() == "mine"
    assert "--force replaces it" in capsys.readouterr().err
