"""The kernel of the divergence between two heads: a program has one token's logits."""

import triton
import triton.language as tl


@triton.jit
def _grown(most, total, x):
    """Take ``x`` into sums of exponentials, each relative to the largest exponent so far."""
    larger = tl.maximum(most, x)
    return larger, total * tl.exp(most - larger) + tl.exp(x - larger)


@triton.jit
def _log_sum(most, total):
    """Return the logarithm of all of the exponentials' sum."""
    largest = tl.max(most, 0)
    return largest + tl.log(tl.sum(total * tl.exp(most - largest), 0))


@triton.jit(do_not_specialize=["count"])
def kl_rows(
    logits_ptr, target_ptr, label_ptr, mask_ptr, loss_ptr, vocab, count,
    SCALE: tl.constexpr, TARGET_SCALE: tl.constexpr, TEMPERATURE: tl.constexpr,
    LABEL_WEIGHT: tl.constexpr, WANTS_GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Write a token's share of the loss, and its gradient in place of the student's logits.

    Two passes: the logarithms of the softmaxes' sums, and then all that needs them.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocab
    target_ptr += row * vocab
    heat = tl.full((), 1 / TEMPERATURE, ACC)
    scale, target_scale = tl.full((), SCALE, ACC), tl.full((), TARGET_SCALE, ACC)
    share = tl.full((), 1, ACC) / count
    if mask_ptr is not None:
        share *= tl.load(mask_ptr + row).to(ACC)

    lowest = tl.full((BLOCK,), -1e38, ACC)  # finite: -inf less -inf would be NaN
    most, total = lowest, tl.zeros((BLOCK,), ACC)
    target_most, target_total = lowest, tl.zeros((BLOCK,), ACC)
    cold_most, cold_total = lowest, tl.zeros((BLOCK,), ACC)  # at temperature 1, for the labels
    for start in range(0, vocab, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        known = entry < vocab
        cold = tl.load(logits_ptr + entry, mask=known, other=0.0).to(ACC) * scale
        cold = tl.where(known, cold, float("-inf"))
        target = tl.load(target_ptr + entry, mask=known, other=0.0).to(ACC) * target_scale * heat
        target = tl.where(known, target, float("-inf"))
        most, total = _grown(most, total, cold * heat)
        target_most, target_total = _grown(target_most, target_total, target)
        if label_ptr is not None:
            cold_most, cold_total = _grown(cold_most, cold_total, cold)

    label_share = tl.zeros((), ACC)
    chosen, cold_log_sum, loss = label_share, label_share, label_share
    label = -1
    if label_ptr is not None:
        label = tl.load(label_ptr + row)
        there = (label >= 0) & (label < vocab)
        label_share += tl.where(there, tl.full((), LABEL_WEIGHT, ACC), 0.0)
        # Before the sums below, where all warps meet: the second pass overwrites it.
        chosen = tl.load(logits_ptr + label, mask=there, other=0.0).to(ACC) * scale
    log_sum, target_log_sum = _log_sum(most, total), _log_sum(target_most, target_total)
    if label_ptr is not None:
        cold_log_sum = _log_sum(cold_most, cold_total)
        loss = label_share * (cold_log_sum - chosen)
    divergences = tl.zeros((BLOCK,), ACC)
    for start in range(0, vocab, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        known = entry < vocab
        cold = tl.load(logits_ptr + entry, mask=known, other=0.0).to(ACC) * scale
        target = tl.load(target_ptr + entry, mask=known, other=0.0).to(ACC) * target_scale * heat
        got, wanted = cold * heat - log_sum, target - target_log_sum
        # Where the teacher gives no probability at all, 0 · -inf is 0 and not NaN.
        counts = known & (wanted > float("-inf"))
        divergences += tl.where(counts, tl.exp(wanted) * (wanted - got), 0.0)
        if WANTS_GRADIENT:
            slope = (1 - label_share) * (tl.exp(got) - tl.exp(wanted)) / heat
            if label_ptr is not None:
                certain = tl.where(entry == label, 1.0, 0.0).to(ACC)
                slope += label_share * (tl.exp(cold - cold_log_sum) - certain)
            slope *= scale * share
            tl.store(logits_ptr + entry, slope.to(logits_ptr.dtype.element_ty), mask=known)
    loss += (1 - label_share) * tl.sum(divergences, 0) / (heat * heat)
    tl.store(loss_ptr + row, loss * share)
