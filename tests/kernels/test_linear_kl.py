"""KL divergences between heads, against the formula on whole logits in float64."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hybridize.kernels import linear_kl_divergence, linear_topk_kl_divergence
from hybridize.kernels.eager import rows


@pytest.fixture(params=["reference", "eager"], autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_KERNELS", request.param)
    monkeypatch.setattr(rows, "_TILE", 29 * 3)  # tiles of three tokens


def operands(tokens=13, vocab=29, hidden=7, target=5, dtype=torch.float64, seed=0):
    """Return hidden states and heads of student and teacher; the student's require gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, hidden), (vocab, hidden), (tokens, target), (vocab, target))
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_(index < 2) for index, tensor in enumerate(drawn)]


def kl_of_whole_logits(
    hidden, weight, target_hidden, target_weight, temperature=1.0, scales=(1.0, 1.0),
    labels=None, label_weight=0.0, mask=None,
):  # fmt: skip
    logits = hidden @ weight.T * scales[0]
    teacher = torch.softmax(target_hidden @ target_weight.T * scales[1] / temperature, -1)
    student = torch.log_softmax(logits / temperature, -1)
    losses = temperature**2 * (teacher * (teacher.log() - student)).sum(-1)
    if labels is not None:
        log_probs = torch.log_softmax(logits, -1)
        for token, label in enumerate(labels.tolist()):
            if label >= 0:
                mixed = (1 - label_weight) * losses[token] - label_weight * log_probs[token, label]
                losses = torch.cat([losses[:token], mixed[None], losses[token + 1 :]])
    return losses.mean() if mask is None else losses[mask].mean()


LABELS = torch.tensor([3, -100, 28, 0, 5, 5, -100, 7, 8, 9, 10, 11, 12])
MASK = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
OPTIONS = [
    {},
    {"temperature": 2.5},
    {"scales": (0.3, 1.7)},
    {"labels": LABELS, "label_weight": 0.4},
    {"labels": LABELS, "label_weight": 1.0, "temperature": 0.5},
    {"mask": MASK},
    {"mask": MASK, "labels": LABELS, "label_weight": 0.1, "scales": (2.0, 0.5)},
]


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 12, 13, 14])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_loss_and_gradients_equal_the_formula_on_whole_logits(options, chunk_size):
    given = operands()
    got = linear_kl_divergence(*given, **options, chunk_size=chunk_size)
    (3 * got).backward()
    gradients = [tensor.grad for tensor in given[:2]]
    assert [tensor.grad for tensor in given[2:]] == [None, None]
    again = operands()
    expected = kl_of_whole_logits(*again, **options)
    (3 * expected).backward()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    for gradient, tensor in zip(gradients, again[:2], strict=True):
        torch.testing.assert_close(gradient, tensor.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_gradients_match_finite_differences(options):
    given = operands()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_kl_divergence(h, w, *given[2:], **options, chunk_size=5),
        given[:2],
        fast_mode=True,
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
)
def test_narrow_dtypes_stay_within_error_bounds(dtype, tolerance):
    given = operands(tokens=40, dtype=dtype)
    got = linear_kl_divergence(*given, chunk_size=16)
    got.backward()
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
    expected = kl_of_whole_logits(*exact)
    expected.backward()
    assert got.dtype == torch.float32
    assert abs(got.item() - expected.item()) <= tolerance * expected.item()
    for ours, theirs in zip(given[:2], exact[:2], strict=True):
        assert ours.grad.dtype == dtype
        error = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert error <= tolerance


def test_strided_operands_and_one_token():
    given = operands(tokens=1)
    strided = [t.detach().repeat_interleave(2, 1)[:, ::2].requires_grad_() for t in given]
    got = linear_kl_divergence(*strided)
    torch.testing.assert_close(got, kl_of_whole_logits(*given), rtol=1e-12, atol=1e-14)


def test_only_tensors_that_require_a_gradient_get_one():
    given = operands()
    given[1].requires_grad_(False)
    linear_kl_divergence(*given).backward()
    assert given[0].grad is not None
    assert given[1].grad is None
    with torch.no_grad():
        assert not linear_kl_divergence(*given).requires_grad


def test_the_teacher_never_gets_a_gradient():
    student_and_teacher = [tensor.requires_grad_() for tensor in operands()]
    loss = linear_kl_divergence(*student_and_teacher)
    loss.backward()
    assert student_and_teacher[0].grad is not None
    assert student_and_teacher[2].grad is student_and_teacher[3].grad is None
    frozen = [tensor.detach() for tensor in student_and_teacher[:2]]
    torch.testing.assert_close(
        linear_kl_divergence(*frozen, *student_and_teacher[2:]), loss.detach()
    )


def test_no_counted_tokens_give_zero_loss():
    given = operands()
    loss = linear_kl_divergence(*given, mask=torch.zeros(13, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert not given[0].grad.any()
    assert not given[1].grad.any()


def test_a_certain_teacher_gives_a_finite_loss():
    given = operands(target=1)
    given[2].fill_(1e4)
    loss = linear_kl_divergence(*[t.float().detach().requires_grad_() for t in given])
    assert math.isfinite(loss.item())


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest result of any torch operation."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("top", [None, 6])
def test_whole_logits_are_never_in_memory(top):
    tokens, vocab = 96, 300
    given = operands(tokens=tokens, vocab=vocab)
    with Largest() as largest:
        if top is None:
            loss = linear_kl_divergence(*given, chunk_size=8)
        else:
            indices = torch.arange(top).expand(tokens, top)
            log_probs = torch.full((tokens, top), math.log(0.9 / top), dtype=torch.float64)
            loss = linear_topk_kl_divergence(*given[:2], indices, log_probs, chunk_size=8)
        loss.backward()
    assert largest.elements <= max(8 * vocab, vocab * 7, tokens * 7)


class HeadProducts(TorchDispatchMode):
    """Counts the matrix products that read or write a whole chunk of logits."""

    def __init__(self, vocab):
        super().__init__()
        self._vocab = vocab
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
            shapes = [arg.shape for arg in args if isinstance(arg, torch.Tensor)]
            self.count += any(self._vocab in shape for shape in shapes)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("top", [None, 6])
def test_only_the_logits_are_computed_without_grad_mode(top):
    vocab = 29
    given = operands()  # the student's require gradients

    def loss():
        if top is None:
            return linear_kl_divergence(*given)
        _, indices, values = teacher_of(given, top)
        return linear_topk_kl_divergence(*given[:2], indices, values)

    with HeadProducts(vocab) as with_gradients:
        loss()
    with HeadProducts(vocab) as without, torch.no_grad():
        loss()
    # The student's and the teacher's logits; then the gradients of the hidden states and the head.
    assert (with_gradients.count, without.count) == (4, 2)


def teacher_of(given, top):
    """Return all log-probabilities of the teacher, the indices of the top k, and their values."""
    log_probs = torch.log_softmax(given[2] @ given[3].T, -1)
    values, indices = log_probs.topk(top)
    return log_probs, indices, values


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("top", [1, 5, 28])
def test_top_k_tokens_and_all_others_form_one_distribution(top, chunk_size):
    given = operands(seed=3)
    log_probs, indices, values = teacher_of(given, top)
    teacher, student = log_probs.exp(), torch.softmax(given[0] @ given[1].T * 0.7, -1)
    chosen = torch.zeros_like(teacher, dtype=torch.bool).scatter(1, indices, True)

    def buckets(p):
        kept = p[chosen].view(len(p), top)
        return torch.cat([kept, (p * ~chosen).sum(-1, keepdim=True)], -1)

    p, q = buckets(teacher), buckets(student)
    expected = (p * (p.log() - q.log())).sum(-1).mean()
    expected.backward()
    expected_gradients = [given[0].grad.clone(), given[1].grad.clone()]
    given[0].grad = given[1].grad = None
    loss = linear_topk_kl_divergence(*given[:2], indices, values, scale=0.7, chunk_size=chunk_size)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    for leaf, gradient in zip(given[:2], expected_gradients, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-8, atol=1e-11)


def test_top_k_of_all_tokens_is_the_full_divergence():
    given = operands(seed=4)
    _, indices, values = teacher_of(given, 29)
    full, all_known = (
        linear_kl_divergence(*given),
        linear_topk_kl_divergence(*given[:2], indices, values),
    )
    torch.testing.assert_close(all_known, full, rtol=1e-9, atol=1e-12)
