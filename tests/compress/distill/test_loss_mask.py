"""The kl stage counts only predictions of learned tokens; compared with float64 formulas."""

import math

import pytest
import torch
from distilling import SHORT, load_in_float64, losses

import hybridize
from chats import conversation, write_chat_tokenizer, write_lines
from hybridize.compress.distill.batches import split_batch
from hybridize.compress.distill.loss_mask import check_mask, counted_predictions
from hybridize.compress.distill.stages import make_stage
from hybridize.compress.distill.teacher_cache import TeacherCache
from hybridize.compress.distill.teacher_caches import TeacherCaches
from hybridize.data.load_text import load_training_text
from hybridize.data.packing import PackedDataset
from hybridize.data.rows import RowOptions
from hybridize.errors import InputError
from tiny import write_stock

VOCAB = 320
SEQUENCES, LENGTH = 4, 23
EVERY = torch.arange(SEQUENCES)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    teacher, student = folder / "teacher", folder / "student"
    write_stock(teacher, "llama", num_hidden_layers=3, vocab_size=VOCAB)
    write_chat_tokenizer(teacher)
    hybridize.convert(teacher, student, keep=(1,))
    return teacher, student


def load(directories, **options):
    teacher, student = directories
    return load_in_float64(teacher, student, data=("a.jsonl",), **options)


@pytest.fixture
def dataset():
    """The last sequence has no learned token."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCAB, (SEQUENCES, LENGTH), generator=generator, dtype=torch.int32)
    seq_idx = torch.tensor([0] * 9 + [1] * 14, dtype=torch.int32).expand(SEQUENCES, -1)
    mask = torch.rand((SEQUENCES, LENGTH), generator=generator) < 0.4
    mask[-1] = False
    mask[0, :10] = True  # with the border between two documents
    mask[1] = False
    mask[1, 0] = mask[1, 9] = True  # first tokens of documents, which nothing predicts
    return PackedDataset(ids, seq_idx, mask)


def token_losses(pair, config, ids, seq_idx):
    """The loss of the prediction of each token from 1 on, ``(sequences, length - 1)``."""
    temperature, weight = config.temperature, config.label_weight
    with torch.no_grad():
        target = pair.teacher(ids, seq_idx=seq_idx, use_cache=False).logits[:, :-1]
    logits = pair.student(ids, seq_idx=seq_idx, use_cache=False).logits[:, :-1]
    p = (target / temperature).log_softmax(-1)
    q = (logits / temperature).log_softmax(-1)
    divergence = temperature**2 * (p.exp() * (p - q)).sum(-1)
    entropy = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (1 - weight) * divergence + weight * entropy


def counted(dataset, indices):
    """Which tokens from 1 on count: those learned and not the first of their document."""
    result = dataset.mask(indices)[:, 1:].clone()
    result[:, 8] = False  # token 9 is the first of the second document
    return result


@pytest.mark.parametrize("tbptt_length", [0, 5])
@pytest.mark.parametrize(("temperature", "label_weight"), [(1.0, 0.0), (2.0, 0.3)])
def test_losses_and_gradients(directories, dataset, temperature, label_weight, tbptt_length):
    pair, config = load(
        directories,
        temperature=temperature,
        label_weight=label_weight,
        tbptt_length=tbptt_length,
        train="all",
    )
    stage = make_stage("kl", pair, config)
    ids, seq_idx = dataset.sequences(EVERY)
    stage.mask = counted_predictions(dataset, EVERY)
    loss = stage.training_step(ids, seq_idx, EVERY)
    assert stage.validation_step(ids, seq_idx, EVERY) == pytest.approx(loss, rel=1e-12)
    expected = token_losses(pair, config, ids, seq_idx)[counted(dataset, EVERY)].mean()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9)
    if not tbptt_length:  # segments cut gradients
        names = list(stage.parameters)
        gradients = torch.autograd.grad(expected, [stage.parameters[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            torch.testing.assert_close(stage.parameters[name].grad, gradient, rtol=1e-7, atol=1e-10)


def test_a_mask_of_all_tokens_differs_only_at_the_ends_of_documents(directories, dataset):
    """They predict no token of their document."""
    pair, config = load(directories)
    ids, seq_idx = dataset.sequences(EVERY)
    everything = PackedDataset(ids.int(), seq_idx.int(), torch.ones_like(ids, dtype=torch.bool))
    stage = make_stage("kl", pair, config)
    stage.mask = counted_predictions(everything, EVERY)
    assert int(stage.mask.sum()) == SEQUENCES * (LENGTH - 2)
    kept = [n for n in range(LENGTH - 1) if n != 8]
    expected = token_losses(pair, config, ids, seq_idx)[:, kept].mean()
    assert stage.validation_step(ids, seq_idx, EVERY) == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("chosen", [[3], [1, 3]])
def test_a_batch_in_which_nothing_counts_has_no_loss(
    directories, dataset, chosen, cached, tmp_path
):
    pair, config = load(directories, label_weight=0.5, cache_teacher=4 * cached)
    stage = make_stage("kl", pair, config, stored(pair, dataset, tmp_path) if cached else None)
    indices = torch.tensor(chosen)
    stage.mask = counted_predictions(dataset, indices)
    assert stage.training_step(*dataset.sequences(indices), indices) == 0.0
    for parameter in stage.parameters.values():
        assert parameter.grad is None or not parameter.grad.any()


def stored(pair, dataset, folder, top=VOCAB):
    cache = TeacherCache(folder, dataset, top, "x")
    cache.fill(pair.teacher)
    return TeacherCaches(predictions=cache)


def test_stored_predictions_have_the_same_mask(directories, dataset, tmp_path):
    """With all tokens stored, the loss is the whole divergence, to the precision of float16."""
    pair, config = load(directories, tbptt_length=7)
    ids, seq_idx = dataset.sequences(EVERY)
    stage = make_stage("kl", pair, config, stored(pair, dataset, tmp_path))
    stage.mask = counted_predictions(dataset, EVERY)
    expected = token_losses(pair, config, ids, seq_idx)[counted(dataset, EVERY)].mean()
    found = stage.validation_step(ids, seq_idx, EVERY)
    assert found == pytest.approx(float(expected.detach()), abs=2e-3)
    everything = token_losses(pair, config, ids, seq_idx).mean()
    assert abs(found - float(everything.detach())) > 2e-3  # the mask matters


@pytest.mark.parametrize(("size", "at_once"), [(1, 1), (1, 3), (2, 4), (2, 3), (3, 4)])
def test_the_mean_over_parts_is_the_mean_over_the_batch(directories, dataset, size, at_once):
    """Although the parts, also of several processes, have other numbers of counted predictions."""
    pair, config = load(directories, tbptt_length=12)
    stage, total = make_stage("kl", pair, config), 0.0
    mask = counted_predictions(dataset, EVERY)
    for rank in range(size):
        for part in split_batch(EVERY, at_once, rank, size, mask):
            stage.weight, stage.mask = part.weight, part.counted
            loss = stage.training_step(*dataset.sequences(part.indices), part.indices)
            total += part.weight * loss / size
    gradients = {name: p.grad / size for name, p in stage.parameters.items()}
    for parameter in stage.parameters.values():
        parameter.grad = None
    stage.weight, stage.mask = 1.0, mask
    assert stage.training_step(*dataset.sequences(EVERY), EVERY) == pytest.approx(total, rel=1e-9)
    for name, parameter in stage.parameters.items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-7, atol=1e-10)


def test_the_parts_of_a_batch_in_which_nothing_counts_have_no_weight(dataset):
    indices = torch.tensor([1, 3, 1])
    parts = split_batch(indices, 2, counted=counted_predictions(dataset, indices))
    assert [part.weight for part in parts] == [0.0, 0.0]


def test_texts_without_learned_tokens_are_refused(dataset):
    good = PackedDataset.of(dataset._store, range(1))
    bad = PackedDataset.of(dataset._store, range(1, 2))  # only first tokens of documents
    plain = PackedDataset(*map(torch.Tensor.int, dataset.sequences(EVERY)))
    check_mask(bad, bad, "all")
    check_mask(good, good, "assistant")
    check_mask(good, plain, "assistant")
    with pytest.raises(InputError, match="loss_on=assistant`: the training text has no token"):
        check_mask(bad, good, "assistant")
    with pytest.raises(InputError, match=r"validation text .*raise `validation_sequences`"):
        check_mask(good, bad, "assistant")
    with pytest.raises(InputError, match="the text has plain text only"):
        check_mask(plain, plain, "assistant")


@pytest.fixture
def text(tmp_path):
    rows = [
        {"messages": conversation(f"Q{n}", f"A{n % 7} is it")} if n % 4 else {"text": f"plain {n}"}
        for n in range(200)
    ]
    return write_lines(tmp_path / "text.jsonl", rows)


RUN = {**SHORT, "stages": ("align", "kl"), "seq_len": 24, "save_every": 3, "label_weight": 0.2}


def run(directories, text, output, **options):
    teacher, student = directories
    arguments = RUN | {"teacher": teacher, "data": [str(text)], "loss_on": "assistant"} | options
    return hybridize.distill(student, output, **arguments)


@pytest.mark.parametrize("cache_teacher", [0, 8])
def test_a_run_validates_on_learned_tokens_and_resumes(
    directories, text, tmp_path, cache_teacher, monkeypatch
):
    from hybridize.compress.distill.trainer import Trainer

    whole = run(directories, text, tmp_path / "whole", cache_teacher=cache_teacher)
    kl = whole.stages[-1]
    assert 0 < kl.validation_after < kl.validation_before
    step, steps = Trainer._train_step, []

    def interrupted(trainer):
        steps.append(1)
        if len(steps) == 7:  # in the kl stage, behind a save
            raise KeyboardInterrupt
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(directories, text, tmp_path / "out", cache_teacher=cache_teacher)
    text.unlink()  # the packed text has the masks
    run(directories, text, tmp_path / "out", cache_teacher=cache_teacher, resume=True)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_accumulation_counts_the_same_tokens_as_a_large_batch(directories, text, tmp_path):
    """Seven sequences in parts of three, with other numbers of learned tokens in each part."""
    options = {"stage_tokens": {"align": 672, "kl": 1008}, "train": "all", "validate_every": 2}
    run(directories, text, tmp_path / "one", batch_size=7, **options)
    run(directories, text, tmp_path / "parts", batch_size=3, global_batch_size=7, **options)
    ours, theirs = losses(tmp_path / "parts"), losses(tmp_path / "one")
    assert len([line for line in ours if "loss" in line]) == 4 + 6
    for found, expected in zip(ours, theirs, strict=True):
        assert found.pop("stage") == expected.pop("stage")
        assert found == pytest.approx(expected, rel=1e-5)  # rounding in another order


def test_steps_in_which_nothing_counts_have_no_loss(directories, tmp_path):
    """Most sequences are a part of a prompt; so are both parts of some steps."""
    rows = [{"prompt": f"{n} " + "abc" * 30, "completion": f"{n} de"} for n in range(60)]
    text = write_lines(tmp_path / "text.jsonl", rows)
    run(directories, text, tmp_path / "out", loss_on="completion", stages=("kl",),
        stage_tokens={"kl": 480}, batch_size=1, global_batch_size=2)  # fmt: skip
    found = [line["loss"] for line in losses(tmp_path / "out") if "loss" in line]
    assert len(found) == 10  # a loss that is not finite skips its step
    assert 0.0 in found
    assert any(found)


def test_validation_is_the_mean_over_learned_tokens(directories, text, tmp_path):
    """Of all batches: the last one has another number of them."""
    teacher = directories[0]
    options = {"validation_sequences": 6, "eval_every": 100}
    result = run(directories, text, tmp_path / "out", **options)
    found = [entry for entry in losses(tmp_path / "out") if "validation" in entry][-1]
    _, validation = load_training_text(
        [str(text)],
        model=teacher,
        length=24,
        tokens=4000,
        held_out=6,
        cache=tmp_path / "cache",
        record=tmp_path / "text.key",
        rows=RowOptions(loss_on="assistant"),
    )
    pair, config = load((teacher, tmp_path / "out"), label_weight=0.2)
    ids, seq_idx = validation.sequences(range(6))
    learned = validation.mask(range(6))[:, 1:] & (seq_idx[:, 1:] == seq_idx[:, :-1])
    values = token_losses(pair, config, ids, seq_idx)
    expected = float(values[learned].mean().detach())
    assert found["validation"] == pytest.approx(expected, rel=1e-4)
    assert abs(float(values.mean().detach()) / expected - 1) > 1e-3
    pair, config = load((teacher, tmp_path / "out"), label_weight=1.0)
    entropies = token_losses(pair, config, ids, seq_idx)
    align, kl = result.stages
    nats = float(entropies[learned].mean().detach())
    assert kl.perplexity_after == pytest.approx(math.exp(nats), rel=1e-4)
    assert abs(float(entropies.mean().detach()) / nats - 1) > 1e-3
    assert align.perplexity_after == pytest.approx(kl.perplexity_before, rel=1e-6)
    assert '"loss_on": "assistant"' in (tmp_path / "out" / "hybridize.json").read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"data": ["teacher"]}, "`loss_on` is for text with rows"),
        ({"data": ["teacher"], "loss_on": "all", "skip_bad_rows": True}, "`skip_bad_rows` is for"),
        ({"stages": ("align",), "stage_tokens": {}}, "`loss_on` is for the stages kl"),
        ({"data_column": ["text"]}, "`data_column=text`: give NAME=COLUMN"),
        ({"data_column": ["other=a"]}, "`data_column=other=a`: give NAME=COLUMN, where NAME is"),
        ({"data_column": ["text=a", "text=b"]}, "text has several columns"),
        ({"loss_on": "user"}, "`loss_on=user`"),
    ],
)
def test_options_that_do_not_fit(directories, text, tmp_path, options, complaint):
    with pytest.raises(InputError, match=complaint):
        run(directories, text, tmp_path / "out", **options)


def test_plain_text_with_a_loss_on_answers_is_refused(directories, tmp_path):
    text = write_lines(tmp_path / "text.jsonl", [{"text": f"some text {n}"} for n in range(200)])
    with pytest.raises(InputError, match="the text has plain text only"):
        run(directories, text, tmp_path / "out")
    assert not (tmp_path / "out.distill").exists()
