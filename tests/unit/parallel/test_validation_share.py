"""Validation dealt to several processes: every target once, and as many batches as are announced."""

from __future__ import annotations

import numpy as np
import pytest

from questlm.data import TokenStream, windows
from questlm.data.loader import batch_count


@pytest.mark.parametrize("tokens", [2, 9, 33, 100, 129])
@pytest.mark.parametrize("max_tokens", [None, 8, 40])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_target_comes_to_one_process(tokens: int, max_tokens: int | None, processes: int) -> None:
    stream = TokenStream([np.arange(tokens, dtype=np.uint16)])
    alone = list(windows(stream, 8, 2, max_tokens))
    shares = [list(windows(stream, 8, 2, max_tokens, rank, processes)) for rank in range(processes)]
    assert batch_count(stream, 8, 2, max_tokens) == len(alone) == sum(map(len, shares))
    dealt = [target for share in shares for _, targets in share for target in targets.flatten().tolist()]
    assert sorted(dealt) == sorted(target for _, targets in alone for target in targets.flatten().tolist())
    assert len(set(dealt)) == len(dealt)
    assert max(map(len, shares)) == -(-len(alone) // processes)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
