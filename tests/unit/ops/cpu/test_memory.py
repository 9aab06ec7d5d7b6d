"""Memory for laid-out weights: aligned, apart, and given back."""

from __future__ import annotations

import gc
import mmap
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from questlm.ops.cpu import memory


@given(st.lists(st.one_of(st.integers(0, 200), st.integers(0, 2**27)), max_size=8))
def test_pieces_are_aligned_and_apart(sizes: list[int]) -> None:
    pieces = [memory.aligned_memory(size) for size in sizes]
    assert [len(piece) for piece in pieces] == sizes
    assert all(piece.data_ptr() % 64 == 0 for piece in pieces if len(piece))
    spans = sorted((piece.data_ptr(), piece.data_ptr() + len(piece)) for piece in pieces if len(piece))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_memory_can_be_written_to_its_ends() -> None:
    for size in (1, 2**16, 2**21 + 5):
        piece = memory.aligned_memory(size)
        piece[0], piece[-1] = 1, 2
        assert piece[-1] == 2


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux only")
def test_a_chunk_is_given_back_with_its_last_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[mmap.mmap]] = []

    class Watched(mmap.mmap):
        def __init__(self, *arguments: object, **options: object) -> None:
            made.append(weakref.ref(self))

    monkeypatch.setattr(memory.mmap, "mmap", Watched)
    monkeypatch.setattr(memory, "_left", torch.empty(0, dtype=torch.uint8))
    first, second = memory.aligned_memory(100), memory.aligned_memory(100)
    assert len(made) == 1
    memory._left = torch.empty(0, dtype=torch.uint8)
    del first
    gc.collect()
    assert made[0]() is not None
    del second
    gc.collect()
    assert made[0]() is None


def test_without_huge_pages_memory_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(memory.mmap, "MADV_HUGEPAGE", raising=False)
    monkeypatch.setattr(memory, "_left", torch.empty(0, dtype=torch.uint8))
    assert memory.aligned_memory(2**20).data_ptr() % 64 == 0
