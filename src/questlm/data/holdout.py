"""Choose which part of a corpus validates where no validation text was given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from questlm.errors import DataError

__all__ = ["choose_documents", "tail_start"]

_SEED = 0


def choose_documents(lengths: NDArray[np.int64], total: int, fraction: float) -> NDArray[np.bool_] | None:
    """Choose documents with at least `fraction` of `total` tokens together, at most twice that, and never all tokens.

    `lengths` are the tokens of each document. Documents are taken in a shuffled order that depends only on their
    number. Many small documents represent a corpus better than one large one, so no document may have more than an
    eighth of the wanted tokens; where such documents do not suffice, a half, and at last any size that fits.

    Returns:
        A mask over the documents, or None where no choice fits.
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
    """Return the position from which the last `fraction` of `total` tokens validates; both sides get one or more."""
    if total < 2:
        raise DataError(f"the corpus has {total} tokens, too few to hold some out; use more text")
    return min(max(1, total - round(fraction * total)), total - 1)
