"""The kernel of the KL divergence between two heads: a program has one token's logits."""

import triton
import triton.language as tl


@triton.jit
def _add_exp(b_max, b_sum, b_x):
    """Add ``exp(b_x)`` to a running sum, which is relative to ``exp`` of the running maximum."""
    b_new_max = tl.maximum(b_max, b_x)
    return b_new_max, b_sum * tl.exp(b_max - b_new_max) + tl.exp(b_x - b_new_max)


@triton.jit
def _log_sum_exp(b_max, b_sum):
    """Return the logarithm of the sum of all exponentials that `_add_exp` has added."""
    maximum = tl.max(b_max, 0)
    return maximum + tl.log(tl.sum(b_sum * tl.exp(b_max - maximum), 0))


@triton.jit(do_not_specialize=["count"])
def kl_rows(
    logits, targets, labels, mask, losses, vocab, count,
    SCALE: tl.constexpr, TARGET_SCALE: tl.constexpr, TEMPERATURE: tl.constexpr,
    LABEL_WEIGHT: tl.constexpr, WANTS_GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Write one token's part of the mean loss; replace the student's logits by their gradient.

    The first pass computes the softmaxes' normalizers, the second the loss and the gradient.
    ``count`` is the number of tokens that the mean is taken over.
    """
    i_row = tl.program_id(0).to(tl.int64)
    logits += i_row * vocab
    targets += i_row * vocab
    inverse_temperature = tl.full((), 1 / TEMPERATURE, ACC)
    scale, target_scale = tl.full((), SCALE, ACC), tl.full((), TARGET_SCALE, ACC)
    token_weight = tl.full((), 1, ACC) / count
    if mask is not None:
        token_weight *= tl.load(mask + i_row).to(ACC)

    b_lowest = tl.full((BLOCK,), -1e38, ACC)  # finite, because -inf minus -inf would be NaN
    b_max, b_sum = b_lowest, tl.zeros((BLOCK,), ACC)
    b_target_max, b_target_sum = b_lowest, tl.zeros((BLOCK,), ACC)
    b_label_max, b_label_sum = b_lowest, tl.zeros((BLOCK,), ACC)  # at temperature 1, for the labels
    for start in range(0, vocab, BLOCK):
        o_v = start + tl.arange(0, BLOCK)
        m_v = o_v < vocab
        b_logits = tl.load(logits + o_v, mask=m_v, other=0.0).to(ACC) * scale
        b_logits = tl.where(m_v, b_logits, float("-inf"))
        b_target = tl.load(targets + o_v, mask=m_v, other=0.0).to(ACC) * target_scale
        b_target = tl.where(m_v, b_target * inverse_temperature, float("-inf"))
        b_max, b_sum = _add_exp(b_max, b_sum, b_logits * inverse_temperature)
        b_target_max, b_target_sum = _add_exp(b_target_max, b_target_sum, b_target)
        if labels is not None:
            b_label_max, b_label_sum = _add_exp(b_label_max, b_label_sum, b_logits)

    label_weight = tl.zeros((), ACC)
    label_logit, label_log_sum, loss = label_weight, label_weight, label_weight
    label = -1
    if labels is not None:
        label = tl.load(labels + i_row)
        m_label = (label >= 0) & (label < vocab)
        label_weight += tl.where(m_label, tl.full((), LABEL_WEIGHT, ACC), 0.0)
        # Load it before the sums below, which synchronize all warps: the second pass overwrites it.
        label_logit = tl.load(logits + label, mask=m_label, other=0.0).to(ACC) * scale
    log_sum, target_log_sum = _log_sum_exp(b_max, b_sum), _log_sum_exp(b_target_max, b_target_sum)
    if labels is not None:
        label_log_sum = _log_sum_exp(b_label_max, b_label_sum)
        loss = label_weight * (label_log_sum - label_logit)
    b_terms = tl.zeros((BLOCK,), ACC)
    for start in range(0, vocab, BLOCK):
        o_v = start + tl.arange(0, BLOCK)
        m_v = o_v < vocab
        b_logits = tl.load(logits + o_v, mask=m_v, other=0.0).to(ACC) * scale
        b_target = tl.load(targets + o_v, mask=m_v, other=0.0).to(ACC) * target_scale
        b_student = b_logits * inverse_temperature - log_sum
        b_teacher = b_target * inverse_temperature - target_log_sum
        # A token of probability 0 for the teacher adds 0; 0 · -inf would be NaN.
        m_terms = m_v & (b_teacher > float("-inf"))
        b_terms += tl.where(m_terms, tl.exp(b_teacher) * (b_teacher - b_student), 0.0)
        if WANTS_GRADIENT:
            b_grad = (1 - label_weight) * (tl.exp(b_student) - tl.exp(b_teacher))
            b_grad = b_grad / inverse_temperature
            if labels is not None:
                b_one_hot = tl.where(o_v == label, 1.0, 0.0).to(ACC)
                b_grad += label_weight * (tl.exp(b_logits - label_log_sum) - b_one_hot)
            b_grad *= scale * token_weight
            tl.store(logits + o_v, b_grad.to(logits.dtype.element_ty), mask=m_v)
    loss += (1 - label_weight) * tl.sum(b_terms, 0) / (inverse_temperature * inverse_temperature)
    tl.store(losses + i_row, loss * token_weight)
