"""Which part of a corpus validates, when nothing was set aside for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from questlm.errors import DataError

__all__ = ["choose_documents", "tail_start"]

_SEED = 0


def choose_documents(lengths: NDArray[np.int64], total: int, fraction: float) -> NDArray[np.bool_] | None:
    """Mark whole documents that hold at least `fraction` of `total` tokens and at most twice that, never all tokens.

    `lengths` are the tokens of each document. Documents are taken in a shuffled order that depends on their number
    only. Many small ones say more about a corpus than one large, so no document may be more than an eighth of what is
    wanted, or, where such do not suffice, a half, or all that fits. None when no such choice is found.
    """
    target = fraction * total
    choices = (_choose(lengths, target, min(2 * target, total - 1), most) for most in (target / 8, target / 2, total))
    return next((chosen for chosen in choices if chosen is not None), None)


def _choose(lengths: NDArray[np.int64], target: float, limit: float, most: float) -> NDArray[np.bool_] | None:
    chosen = np.zeros(len(lengths), dtype=np.bool_)
    held = 0
    for document in np.random.default_rng(_SEED).permutation(len(lengths)):
        together = held + int(lengths[document])
        if lengths[document] <= most and together <= limit:
            chosen[document] = True
            held = together
            if held >= target:
                return chosen
    return None


def tail_start(total: int, fraction: float) -> int:
    """Position from which the last `fraction` of `total` tokens validates: at least one token on either side."""
    if total < 2:
        raise DataError(f"the corpus has {total} tokens, too few to hold some out; use more text")
    return min(max(1, total - round(fraction * total)), total - 1)
