"""Random configurations of every source: transformers' logits, or one line that refuses.

``HYBRIDIZE_FUZZ_CONFIGS`` is the number of configurations. With ``HYBRIDIZE_FUZZ_SHOW``, the test
prints how many were accepted and refused, and why.
"""

import json
import os
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from source_zoo import MODEL_TYPES, VOCAB, Raw, config
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from hybridize.checkpoints.formats import FORMATS
from hybridize.checkpoints.load import load_model
from hybridize.console import console
from hybridize.errors import InputError
from tiny import randomize

CASES = int(os.environ.get("HYBRIDIZE_FUZZ_CONFIGS", "320"))
"""The number of configurations, over all architectures."""

ONE = os.environ.get("HYBRIDIZE_FUZZ_CONFIG")
"""The number of the only configuration to test, for every architecture."""

SHOW = "HYBRIDIZE_FUZZ_SHOW" in os.environ
"""Whether the outcomes are printed; pytest shows them with ``-s``."""

ACCEPTED = 0.5
"""The part of what transformers runs that must be accepted: otherwise the test compares nothing."""


def lengths(raw: Raw) -> list[int]:
    """Return lengths below and beyond every boundary that a config.json names."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    named = [
        *(raw.get(n) for n in ("max_position_embeddings", "sliding_window")),
        *(d.get("original_max_position_embeddings") for d in (raw, rope)),
    ]
    beyond = {n + 3 for n in named if isinstance(n, int) and 0 < n <= 64}
    # The last one is short again: some RoPE types keep what a longer text has changed.
    return [5, *sorted(beyond or {37}), 6]


def stock_model(directory: Path) -> PreTrainedModel:
    """Build transformers' model of a directory's config.json, and write random weights there."""
    stock_config = AutoConfig.from_pretrained(directory)
    model = AutoModelForCausalLM.from_config(stock_config, dtype=torch.float32).eval()
    randomize(model)
    written = (directory / "config.json").read_bytes()
    model.save_pretrained(directory)
    (directory / "config.json").write_bytes(written)
    return model


def ids(length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, VOCAB, (1, length), generator=generator)


@torch.no_grad()
def check(directory: Path, raw: Raw) -> str:
    """Compare hybridize with transformers on one config.json; return what happened."""
    (directory / "config.json").write_text(json.dumps(raw))
    try:
        stock = stock_model(directory)
        want = [stock(ids(length)).logits for length in lengths(raw)]
    except Exception:  # what transformers refuses, it refuses with any error
        return "transformers refuses"
    try:
        model = load_model(directory)
    except InputError as error:
        return f"refused: {error}".replace(str(directory), "")
    for length, expected in zip(lengths(raw), want, strict=True):
        torch.testing.assert_close(
            model(ids(length)).logits, expected, rtol=1e-4, atol=1e-4, equal_nan=True,
            msg=lambda text, n=length: f"{n} tokens: {text}",
        )  # fmt: skip
    return "accepted"


def test_the_zoo_has_every_source():
    assert {*MODEL_TYPES, "hybridize"} == set(FORMATS)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_of_random_configurations_are_those_of_transformers(tmp_path, model_type):
    outcomes: Counter[str] = Counter()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    cases = [ONE] if ONE else range(max(1, CASES // len(MODEL_TYPES)))
    with warnings.catch_warnings(), console.silence():
        warnings.simplefilter("ignore")
        for case in map(int, cases):
            try:
                outcome = check(tmp_path, config(model_type, case))
            except Exception as error:
                raise AssertionError(f"{case}: {config(model_type, case)}") from error
            assert "\n" not in outcome
            outcomes[outcome] += 1
    if SHOW:
        print(model_type, *outcomes.most_common(), sep="\n    ")
    ran = outcomes.total() - outcomes["transformers refuses"]
    assert ONE or outcomes["accepted"] >= ACCEPTED * ran, outcomes
