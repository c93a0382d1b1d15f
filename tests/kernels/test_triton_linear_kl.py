"""The Triton kernel of the KL divergence against the formula on whole logits."""

import pytest
import torch
from test_linear_kl import LABELS, MASK, OPTIONS, kl_of_whole_logits
from triton_testing import DEVICE, DTYPES, draw, error, exact, nan_filled_memory  # noqa: F401

from hybridize.kernels.triton import linear_kl

BOUNDS = dict(zip(DTYPES, (1e-12, 2e-6, 3e-2, 4e-3), strict=True))


def operands(tokens=13, vocab=29, dtype=torch.float64):
    shapes = ((tokens, 7), (vocab, 7), (tokens, 5), (vocab, 5))
    return [draw(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


def check(given, bound, options, **more):
    options = {k: v.to(DEVICE) if torch.is_tensor(v) else v for k, v in options.items()}
    student, exact_operands = [t.requires_grad_() for t in given[:2]], exact(given)
    got = linear_kl.linear_kl_divergence(*given, **options, **more)
    expected = kl_of_whole_logits(*exact_operands, **options)
    assert error(got, expected) < bound
    gradients = torch.autograd.grad(3 * got, student)
    expected_gradients = torch.autograd.grad(3 * expected, exact_operands[:2])
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert error(gradient, expected_gradient) < bound


@pytest.mark.parametrize("chunk_size", [None, 4, 13])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_loss_and_gradients_equal_the_formula_on_whole_logits(options, chunk_size):
    check(operands(), 1e-11, options, chunk_size=chunk_size)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_narrow_dtypes_stay_within_error_bounds(dtype):
    check(operands(dtype=dtype), BOUNDS[dtype], {"labels": LABELS, "label_weight": 0.3})


def test_vocabularies_larger_than_a_block(monkeypatch):
    monkeypatch.setattr(linear_kl, "_BLOCK", 16)
    check(operands(vocab=37), 1e-11, {"mask": MASK, "labels": LABELS, "label_weight": 0.5})


def test_a_certain_teacher_gives_a_finite_loss():
    given = operands(dtype=torch.float32)
    given[2].mul_(1e4)
    loss = linear_kl.linear_kl_divergence(given[0].requires_grad_(), *given[1:])
    (gradient,) = torch.autograd.grad(loss, given[0])
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_no_counted_tokens_give_zero_loss():
    given = operands()
    no_tokens = torch.zeros(13, dtype=torch.bool, device=DEVICE)
    loss = linear_kl.linear_kl_divergence(given[0].requires_grad_(), *given[1:], mask=no_tokens)
    loss.backward()
    assert loss.item() == 0.0
    assert not given[0].grad.any()
