"""Summarize the samples of a model, and compare them with those of the baseline."""

from hybridize.evals.bench.results import BenchRow, Point, Ratios, Spread
from hybridize.evals.bench.runner import Runner, Sample


def compare_samples(samples: list[Sample], baseline: list[Sample], batch_ratio: float) -> Ratios:
    """Compare tokens per second, round by round.

    Args:
        samples: of a model.
        baseline: of the model that it is compared with.
        batch_ratio: the model's batch size divided by the baseline's.
    """
    pairs = list(zip(samples, baseline, strict=True))
    return Ratios(
        prefill=Spread.of([batch_ratio * b.first_token / s.first_token for s, b in pairs]),
        decode=Spread.of([batch_ratio * b.decoding / s.decoding for s, b in pairs]),
        throughput=Spread.of(
            [
                batch_ratio * (b.first_token + b.decoding) / (s.first_token + s.decoding)
                for s, b in pairs
            ]
        ),
    )


def summarize(
    runner: Runner, point: Point, samples: list[Sample], ratios: Ratios | None
) -> BenchRow:
    """Return the row of one model at one point."""
    prompt_tokens = point.batch_size * point.prompt_len
    new_tokens = point.batch_size * point.gen_len
    decoded_each = point.gen_len - 1
    decoded = point.batch_size * decoded_each
    working = [s.working_bytes for s in samples if s.working_bytes is not None]
    return BenchRow(
        model=runner.name,
        backend=runner.backend,
        decoding=runner.decoding,
        point=point,
        first_token=Spread.of([s.first_token for s in samples]),
        prefill=Spread.of([prompt_tokens / s.first_token for s in samples]),
        decode=Spread.of([decoded / s.decoding for s in samples]),
        decode_each=Spread.of([decoded_each / s.decoding for s in samples]),
        throughput=Spread.of([new_tokens / (s.first_token + s.decoding) for s in samples]),
        weight_bytes=runner.weight_bytes,
        peak_bytes=runner.weight_bytes + max(working) if working else None,
        kv_bytes=samples[-1].kv_bytes,
        state_bytes=samples[-1].state_bytes,
        ratios=ratios,
    )
