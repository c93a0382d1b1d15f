"""`HarnessModel` against lm-eval's `HFLM`, and perplexity against plain transformers."""

import math
from pathlib import Path
from typing import Any

import pytest
from exams import CONTEXT, WORDS

from hybridize.errors import HybridizeError, InputError


def _load(checkpoint: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


def _ours(checkpoint: Path, **options: Any) -> Any:
    from hybridize.evals.harness_model import HarnessModel

    model, tokenizer = _load(checkpoint)
    return HarnessModel(model, tokenizer, **{"batch_size": 4, **options})


def _theirs(checkpoint: Path, **options: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = _load(checkpoint)
    return HFLM(pretrained=model, tokenizer=tokenizer, **{"batch_size": 4, **options})


def _instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=pair, idx=index)
        for index, pair in enumerate(arguments)
    ]


PAIRS = [
    ("river stone", " copper"),
    ("river stone", " lantern"),
    ("river stone copper lantern orchid", " seven harbour violet quartz"),
    ("<s>river", " stone"),  # begins with BOS already
    ("", "tiger engine"),
    ("window ", "candle"),  # the space moves to the continuation
    ("garden", " <s><s>"),  # ends in token 0, which is also what rows are padded with
    (" ".join(WORDS * 12), " A"),  # too long
    (" ".join(WORDS * 12), " saddle window"),
]


@pytest.mark.parametrize("name", ["bos", "plain"])
def test_log_likelihoods_equal_those_of_hflm(checkpoints: dict[str, Path], name: str) -> None:
    ours, theirs = _ours(checkpoints[name]), _theirs(checkpoints[name])
    requests = _instances("loglikelihood", *PAIRS)
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [score for score, _ in found] == pytest.approx([s for s, _ in expected], abs=1e-4)
    assert len({score for score, _ in found}) == len(PAIRS)
    assert ours.max_length == theirs.max_length == CONTEXT
    assert (ours.prompts, ours.truncated) == (7, 1)


def test_rolling_log_likelihoods_equal_those_of_hflm(checkpoint: Path) -> None:
    requests = _instances("loglikelihood_rolling", ("river",), (" ".join(WORDS * 15),), ("a b",))
    found = _ours(checkpoint).loglikelihood_rolling(requests)
    assert found == pytest.approx(_theirs(checkpoint).loglikelihood_rolling(requests), rel=1e-6)


def test_generated_answers_equal_those_of_hflm(checkpoint: Path) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    requests = _instances(
        "generate_until", ("river stone", settings), ("tiger", settings), ("copper", settings)
    )
    assert _ours(checkpoint).generate_until(requests) == _theirs(checkpoint).generate_until(
        requests
    )


def test_only_the_needed_logits_are_computed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = _ours(checkpoint, batch_size=2)
    kept = []
    forward = ours.model.forward

    def record(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        kept.append((options["input_ids"].shape[1], output.logits.shape[1]))
        return output

    monkeypatch.setattr(ours.model, "forward", record)
    prompt = " ".join(WORDS)
    pairs = [(prompt, letter) for letter in (" A", " B")] + [(prompt + " river", " A")]
    ours.loglikelihood(_instances("loglikelihood", *pairs))
    # Both questions are in one pass, and the letters of a question share a row.
    ((length, logits),) = kept
    assert length > 25
    assert logits <= 3


@pytest.mark.parametrize("name", ["bos", "plain"])
@pytest.mark.parametrize("words", [1, 20, 150])
@pytest.mark.parametrize("window", [7, 64])
def test_each_token_of_a_text_is_scored_once(
    checkpoints: dict[str, Path], name: str, words: int, window: int
) -> None:
    import torch

    text = " ".join((WORDS * 7)[:words]) + "\n"
    model, tokenizer = _load(checkpoints[name])
    model = model.double()
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    sequence = torch.tensor([tokenizer.bos_token_id, *tokens])
    # Token i is sequence[i + 1]. A window ends every `window` tokens, the last one at the end of
    # the text. It sees the `window` tokens before its end and scores the ones not scored yet.
    total, scored = 0.0, 0
    while scored < len(tokens):
        end = min(scored + window, len(tokens))
        start = max(end - window, 0)
        with torch.no_grad():
            logits = model(sequence[None, start:end]).logits[0]
        log_probabilities = logits.log_softmax(-1)
        for index in range(scored, end):
            total += log_probabilities[index - start, sequence[index + 1]].item()
        scored = end
    found, count = _ours(checkpoints[name]).score_text(text, window)
    assert count == len(tokens)
    assert found == pytest.approx(total, rel=1e-6)


def test_max_length_limits_the_context(checkpoint: Path) -> None:
    short = _ours(checkpoint, max_length=16)
    pair = (" ".join(WORDS), " A")
    ((found, _),) = short.loglikelihood(_instances("loglikelihood", pair))
    tokens = short.tok_encode("".join(pair))
    import torch

    logits = short.model(torch.tensor([tokens[-17:-1]])).logits[0, -1]
    assert found == pytest.approx(logits.log_softmax(-1)[tokens[-1]].item(), abs=1e-5)
    assert (short.prompts, short.truncated) == (1, 1)


def test_a_model_that_computes_nan_is_an_error(checkpoint: Path) -> None:
    ours = _ours(checkpoint)
    ours.model.model.norm.weight.data[3] = math.nan
    with pytest.raises(HybridizeError, match="computes NaN"):
        ours.loglikelihood(_instances("loglikelihood", *PAIRS))


def test_a_text_without_tokens_or_without_bos_and_eos_is_refused(checkpoint: Path) -> None:
    from hybridize.evals.harness_model import HarnessModel

    with pytest.raises(InputError, match="no token that the tokenizer knows"):
        _ours(checkpoint).score_text("", 8)
    model, tokenizer = _load(checkpoint)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither a BOS nor an EOS"):
        HarnessModel(model, tokenizer, batch_size=1)


def test_a_hybrid_without_a_class_in_transformers_is_scored(checkpoint: Path) -> None:
    import torch

    from hybridize.evals.harness_model import HarnessModel
    from hybridize.modeling.config import HybridConfig
    from hybridize.modeling.model import HybridForCausalLM

    tokenizer = _load(checkpoint)[1]
    config = HybridConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        layout="M-*-M-",
        attention={"num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
        mamba={"num_heads": 4, "head_dim": 8, "n_groups": 2, "d_state": 16},
        mlp={"intermediate_size": 48},
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = HybridForCausalLM(config).eval()
    ours = HarnessModel(model, tokenizer, batch_size=4)
    pairs = [pair for pair in PAIRS if pair[0] and not pair[0].endswith(" ")]
    found = [score for score, _ in ours.loglikelihood(_instances("loglikelihood", *pairs))]
    assert ours.max_length == CONTEXT
    # Expected: one by one, without padding.
    for (context, continuation), score in zip(pairs, found, strict=True):
        start = len(ours.tok_encode(context))
        answer = torch.tensor(ours.tok_encode(context + continuation)[start:])
        seen = torch.tensor(ours.tok_encode(context + continuation)[-CONTEXT - 1 : -1])
        with torch.no_grad():
            logits = model(seen[None]).logits[0, -len(answer) :]
        expected = logits.log_softmax(-1).gather(-1, answer[:, None]).sum().item()
        assert score == pytest.approx(expected, abs=1e-4)
