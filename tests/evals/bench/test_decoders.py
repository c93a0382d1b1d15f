"""How a benchmark runs models on a GPU, tested without one: torch.cuda is replaced by fakes."""

import gc
import itertools

import pytest
import torch

import hybridize
from hybridize.errors import HybridizeError, InputError
from hybridize.evals.bench import decoders, runner
from hybridize.evals.bench.largest_batch import fill_gpu, largest_batch
from hybridize.evals.bench.results import AS_MANY_AS_FIT, Point
from hybridize.evals.bench.runner import Runner
from hybridize.evals.bench.timer import CudaTimer, WallTimer, timer_for
from hybridize.modeling.cache.format import CacheFormat
from hybridize.modeling.costs import cache_cost
from hybridize.modeling.decoding import StaticDecoder
from tiny import write_stock


def bytes_per_sequence(config, tokens):
    """Bytes of a preallocated cache in float32."""
    return cache_cost(config, tokens, 4, preallocated=True).total


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two hybrids, one with much attention and a large cache, one with little of both."""
    folder = tmp_path_factory.mktemp("decoders")
    kinds = {
        "much": ["full_attention"] * 3 + ["linear_attention"],
        "little": ["linear_attention"] * 3,
    }
    for name, kind in kinds.items():
        layers = [*kind, "full_attention"]
        write_stock(
            folder / name, "granitemoehybrid", layer_types=layers, num_hidden_layers=len(layers)
        )
    return folder / "much", folder / "little"


@pytest.fixture
def quick_garbage_collection():
    """Let `gc.collect`, which runs once per trial, ignore all objects that exist now."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def recorded_batches(monkeypatch):
    """Decode with fixed addresses but without a CUDA graph; list the batch size of each record."""
    recorded = []
    monkeypatch.setattr(runner, "choose_decoding", lambda *_: "graph")
    monkeypatch.setattr(
        StaticDecoder, "capture_graph", lambda self: recorded.append(len(self.token))
    )
    return recorded


def test_steps_at_fixed_addresses_are_measured_like_eager_ones(recorded_batches, pair):
    sizes = {"prompt_len": [7], "gen_len": 5, "batch_size": [3], "repeats": 2}
    result = hybridize.bench(list(pair), baseline=pair[0], **sizes)
    assert recorded_batches == [3] * 2 * 3  # two models, a warm-up and two rounds
    for row, path in zip(result.rows, pair, strict=True):
        config = hybridize.load_model(path).config
        assert row.decoding == "graph"
        assert row.kv_bytes + row.state_bytes == 3 * bytes_per_sequence(config, 7 + 5 - 1)
    assert result.to_dict()["rows"][0]["decoding"] == "graph"


@pytest.mark.usefixtures("quick_garbage_collection")
def test_each_model_gets_its_largest_batch_and_ratios_count_tokens(
    monkeypatch, recorded_batches, pair
):
    memory = 200_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (memory, 2 * memory))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)

    class EqualTimes:  # the models differ only in their batch sizes
        def __init__(self):
            self.marks = itertools.cycle([1.0, 2.0, 5.0])

        def mark(self):
            return next(self.marks)

        def seconds(self, start, end):
            return end - start

    monkeypatch.setattr(runner, "timer_for", lambda _: EqualTimes())
    much, little = hybridize.bench(
        [pair[1]], baseline=pair[0], prompt_len=[60], gen_len=5, batch_size=["max"], repeats=1
    ).rows
    for row, path in ((much, pair[0]), (little, pair[1])):
        config = hybridize.load_model(path).config
        assert row.point == Point(60, 5, memory // bytes_per_sequence(config, 64))
    assert little.point.batch_size > much.point.batch_size > 1
    more = little.point.batch_size / much.point.batch_size
    assert little.ratios.decode.median == pytest.approx(more)
    assert little.ratios.throughput.median == pytest.approx(
        little.throughput.median / much.throughput.median
    )


@pytest.mark.usefixtures("quick_garbage_collection")
def test_a_batch_that_does_not_fit_is_lowered_until_it_does(monkeypatch, recorded_batches, pair):
    model = hybridize.load_model(pair[0])
    memory = 60 * bytes_per_sequence(model.config, 9 + 4 - 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (memory, memory))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    read, most = StaticDecoder.prefill_sequences, 20

    def runs_out(self, prompts, first):
        if len(self.token) > most:
            raise torch.OutOfMemoryError
        read(self, prompts, first)

    monkeypatch.setattr(StaticDecoder, "prefill_sequences", runs_out)
    found = fill_gpu("model", model, Point(9, 4, AS_MANY_AS_FIT))
    assert 0.9 * most < found.batch_size <= most
    most = 0
    with pytest.raises(HybridizeError, match="model: not one sequence of 12 tokens fits"):
        fill_gpu("model", model, Point(9, 4, AS_MANY_AS_FIT))


@pytest.mark.parametrize("most", [0, 1, 7, 99, 1000])
def test_the_largest_batch_is_at_most_6_percent_below_the_limit(most):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= most

    found = largest_batch(300, fits)
    assert 0.94 * min(most, 300) <= found <= most
    assert len(tried) < 100


def test_steps_are_recorded_only_on_a_gpu_and_by_hybridize(pair):
    model = hybridize.load_model(pair[0])
    assert decoders.choose_decoding("auto", model, "m") == "eager"
    with pytest.raises(InputError, match="`decoding=graph`: m: only a GPU"):
        decoders.choose_decoding("graph", model, "m")
    eager = Runner("m", "hybridize", model)
    assert eager.fit(Point(1, 2, 3)) == Point(1, 2, 3)
    with pytest.raises(InputError, match="`batch_size=max`: m: works only for models on a GPU"):
        eager.fit(Point(1, 2, AS_MANY_AS_FIT))


def test_on_a_gpu_steps_are_recorded_if_all_steps_are_alike(monkeypatch, pair, tmp_path):
    class Stock(torch.nn.Module):
        device = torch.device("cuda")

    assert decoders.choose_decoding("auto", Stock(), "m") == "eager"
    with pytest.raises(InputError, match="steps of transformers' own models cannot be recorded"):
        decoders.choose_decoding("graph", Stock(), "m")
    monkeypatch.setattr(hybridize.HybridForCausalLM, "device", torch.device("cuda"))
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    write_stock(tmp_path / "dynamic", "llama", rope_parameters=rope)
    plain, dynamic = (hybridize.load_model(path) for path in (pair[0], tmp_path / "dynamic"))
    assert decoders.choose_decoding("auto", plain, "m") == "graph"
    assert decoders.choose_decoding("graph", plain, "m") == "graph"
    assert decoders.choose_decoding("eager", plain, "m") == "eager"
    assert decoders.choose_decoding("auto", dynamic, "m") == "eager"
    with pytest.raises(InputError, match="'dynamic', whose frequencies"):
        decoders.choose_decoding("graph", dynamic, "m")
    plain.model.cache_format = CacheFormat(kv="fp8")
    assert decoders.choose_decoding("auto", plain, "m") == "eager"
    with pytest.raises(InputError, match="no fixed addresses"):
        decoders.choose_decoding("graph", plain, "m")


def test_a_gpu_is_timed_with_cuda_events(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append(("record", stream))
            self.at = len(log) * 1500.0

        def synchronize(self):
            log.append("synchronize")

        def elapsed_time(self, other):
            assert log[-1] == "synchronize"  # the event must have happened
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    timer = timer_for(torch.device("cuda"))
    assert isinstance(timer, CudaTimer)
    start, end = timer.mark(), timer.mark()
    assert log == [("record", "stream of cuda")] * 2
    assert timer.seconds(start, end) == 1.5


def test_a_cpu_is_timed_with_the_wall_clock():
    timer = timer_for(torch.device("cpu"))
    assert isinstance(timer, WallTimer)
    start = timer.mark()
    assert 0 <= timer.seconds(start, timer.mark()) < 60
