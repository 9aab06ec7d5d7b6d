"""Attention of one new token of each sequence to those before it: rotation of query and key, cache and softmax in one.

A program takes one group of query heads that share a key head, and one of SPLITS parts of the sequence, so that a long
text keeps more than a few processors busy. Each part leaves its largest score, the sum of its exponentials and its sum
of values; `questlm.ops.triton.encode_rows` joins the parts. How long a sequence is, is read from the device, so a step
recorded as a graph serves every length.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from questlm.ops.triton.device import INTERPRETED

__all__ = ["decode_attention"]

_LOWEST = tl.constexpr(-1.0e30)


@triton.jit
def _product(a, b):
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _rotated(at, cos, sin, dtype: tl.constexpr, mask, HALF: tl.constexpr):
    """Both halves of vectors at pointers `at`, rotated by their position and rounded to `dtype`."""
    first = tl.load(at, mask=mask, other=0.0)
    second = tl.load(at + HALF, mask=mask, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    one = (a * cos - b * sin).to(first.dtype).to(dtype)
    other = (b * cos + a * sin).to(first.dtype).to(dtype)
    return one, other


@triton.jit
def _tokens(
    keys_ptr, values_ptr, base, first, end, head, half, whole,
    KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both halves of the keys, and the values, of BLOCK tokens from `first` on; 0 from `end` on."""
    index = first + tl.arange(0, BLOCK)
    at = (((base + index) * KV_HEADS + head) * WIDTH)[:, None]
    known = (index < end)[:, None]
    k1 = tl.load(keys_ptr + at + half[None, :], mask=known, other=0.0)
    k2 = tl.load(keys_ptr + at + WIDTH // 2 + half[None, :], mask=known, other=0.0)
    return k1, k2, tl.load(values_ptr + at + whole[None, :], mask=known, other=0.0)


@triton.jit
def _fold(q1, q2, k1, k2, v, first, end, scale, largest, total, sums, BLOCK: tl.constexpr):
    """Largest scores, sums of exponentials and sums of values with BLOCK tokens more, which begin at `first`."""
    known = (first + tl.arange(0, BLOCK) < end)[None, :]
    scores = (_product(q1, tl.trans(k1)) + _product(q2, tl.trans(k2))) * scale
    scores = tl.where(known, scores, _LOWEST)
    new = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.where(known, tl.exp(scores - new[:, None]), 0.0)
    kept = tl.exp(largest - new)
    sums = sums * kept[:, None] + _product(weights.to(v.dtype), v)
    return new, total * kept + tl.sum(weights, axis=1), sums


@triton.jit
def decode_attention(
    qkv_ptr, keys_ptr, values_ptr, lengths_ptr, cos_ptr, sin_ptr, part_ptr, largest_ptr, sum_ptr, capacity, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Parts (batch, SPLITS, HEADS, WIDTH) float32 from qkv (batch, (HEADS + 2 KV_HEADS) WIDTH); keys and values go in.

    keys, values: (batch * capacity, KV_HEADS, WIDTH); cos, sin: (positions, WIDTH / 2) float32.
    """
    if OVERLAPS:
        gdc_launch_dependents()
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    half_width: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = keys_ptr.dtype.element_ty
    half, whole, member = tl.arange(0, half_width), tl.arange(0, WIDTH), tl.arange(0, G)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    cos, sin = tl.load(cos_ptr + length * half_width + half), tl.load(sin_ptr + length * half_width + half)
    base = sequence.to(tl.int64) * capacity
    part = tl.cdiv(tl.cdiv(length, SPLITS), 16) * 16
    start, end = split * part, tl.minimum((split + 1) * part, length)
    # The cache was written by earlier steps, which have ended, so the first tokens are read before waiting.
    k1, k2, v = _tokens(keys_ptr, values_ptr, base, start, end, head, half, whole, KV_HEADS, WIDTH, BLOCK)
    if OVERLAPS:
        gdc_wait()
    row = qkv_ptr + sequence.to(tl.int64) * ((HEADS + 2 * KV_HEADS) * WIDTH)
    present = member < GROUP
    query = row + (head * GROUP + member)[:, None] * WIDTH + half[None, :]
    q1, q2 = _rotated(query, cos[None, :], sin[None, :], dtype, present[:, None], half_width)
    largest = tl.full((G,), _LOWEST, tl.float32)
    total = tl.zeros((G,), tl.float32)
    sums = tl.zeros((G, WIDTH), tl.float32)
    if split == 0:  # the new token itself
        own1, own2 = _rotated(row + (HEADS + head) * WIDTH + half, cos, sin, dtype, half < half_width, half_width)
        own_v = tl.load(row + (HEADS + KV_HEADS + head) * WIDTH + whole).to(dtype)
        to = ((base + length) * KV_HEADS + head) * WIDTH
        tl.store(keys_ptr + to + half, own1)
        tl.store(keys_ptr + to + half_width + half, own2)
        tl.store(values_ptr + to + whole, own_v)
        own = tl.sum(q1.to(tl.float32) * own1.to(tl.float32)[None, :], axis=1)
        own += tl.sum(q2.to(tl.float32) * own2.to(tl.float32)[None, :], axis=1)
        largest = own * scale
        total += 1.0
        sums += own_v.to(tl.float32)[None, :]
    largest, total, sums = _fold(q1, q2, k1, k2, v, start, end, scale, largest, total, sums, BLOCK)
    for first in range(start + BLOCK, end, BLOCK):
        k1, k2, v = _tokens(keys_ptr, values_ptr, base, first, end, head, half, whole, KV_HEADS, WIDTH, BLOCK)
        largest, total, sums = _fold(q1, q2, k1, k2, v, first, end, scale, largest, total, sums, BLOCK)
    to = (sequence.to(tl.int64) * SPLITS + split) * HEADS + head * GROUP + member
    tl.store(largest_ptr + to, largest, mask=present)
    tl.store(sum_ptr + to, total, mask=present)
    tl.store(part_ptr + to[:, None] * WIDTH + whole[None, :], sums, mask=present[:, None])
