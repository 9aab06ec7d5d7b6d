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
        gdc_wait()
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    half_width: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = keys_ptr.dtype.element_ty
    half, whole, member = tl.arange(0, half_width), tl.arange(0, WIDTH), tl.arange(0, G)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    cos, sin = tl.load(cos_ptr + length * half_width + half), tl.load(sin_ptr + length * half_width + half)
    row = qkv_ptr + sequence.to(tl.int64) * ((HEADS + 2 * KV_HEADS) * WIDTH)
    present = member < GROUP
    query = row + (head * GROUP + member)[:, None] * WIDTH + half[None, :]
    q1, q2 = _rotated(query, cos[None, :], sin[None, :], dtype, present[:, None], half_width)
    base = sequence.to(tl.int64) * capacity
    part = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    start, end = split * part, tl.minimum((split + 1) * part, length)
    largest = tl.full((G,), _LOWEST, tl.float32)
    total = tl.zeros((G,), tl.float32)
    sums = tl.zeros((G, WIDTH), tl.float32)
    if split == 0:  # the new token itself
        k1, k2 = _rotated(row + (HEADS + head) * WIDTH + half, cos, sin, dtype, half < half_width, half_width)
        v = tl.load(row + (HEADS + KV_HEADS + head) * WIDTH + whole).to(dtype)
        to = ((base + length) * KV_HEADS + head) * WIDTH
        tl.store(keys_ptr + to + half, k1)
        tl.store(keys_ptr + to + half_width + half, k2)
        tl.store(values_ptr + to + whole, v)
        own = tl.sum(q1.to(tl.float32) * k1.to(tl.float32)[None, :], axis=1)
        own += tl.sum(q2.to(tl.float32) * k2.to(tl.float32)[None, :], axis=1)
        largest = own * scale
        total += 1.0
        sums += v.to(tl.float32)[None, :]
    for first in range(start, end, BLOCK):
        index = first + tl.arange(0, BLOCK)
        at = ((base + index) * KV_HEADS + head) * WIDTH
        known = index < end
        k1 = tl.load(keys_ptr + at[:, None] + half[None, :], mask=known[:, None], other=0.0)
        k2 = tl.load(keys_ptr + at[:, None] + half_width + half[None, :], mask=known[:, None], other=0.0)
        scores = (_product(q1, tl.trans(k1)) + _product(q2, tl.trans(k2))) * scale
        scores = tl.where(known[None, :], scores, _LOWEST)
        new = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp(scores - new[:, None])
        kept = tl.exp(largest - new)
        v = tl.load(values_ptr + at[:, None] + whole[None, :], mask=known[:, None], other=0.0)
        sums = sums * kept[:, None] + _product(weights.to(dtype), v)
        total = total * kept + tl.sum(weights, axis=1)
        largest = new
    to = (sequence.to(tl.int64) * SPLITS + split) * HEADS + head * GROUP + member
    tl.store(largest_ptr + to, largest, mask=present)
    tl.store(sum_ptr + to, total, mask=present)
    tl.store(part_ptr + to[:, None] * WIDTH + whole[None, :], sums, mask=present[:, None])
