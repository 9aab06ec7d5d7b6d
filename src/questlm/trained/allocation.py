"""Share out bytes among matrices so that the expected loss is least: one choice for each, within a total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Option", "allocate", "total_bytes"]

T = TypeVar("T")


class Option(NamedTuple, Generic[T]):
    """One way to store a matrix: what it is, its bytes, and what it is expected to add to the loss."""

    choice: T
    bytes: float
    loss: float


def allocate(matrices: Mapping[str, Sequence[Option[T]]], limit: float) -> dict[str, Option[T]] | None:
    """Return one option of each matrix, with about the least sum of losses whose bytes are at most `limit`.

    The best under a price of bytes is found for the price at which it just fits (Shoham and Gersho 1988); bytes that
    are then left go where they save most, one option at a time.

    Returns:
        by the name of the matrix; None where even the smallest options take more.
    """
    smallest = {name: min(options, key=lambda option: option.bytes) for name, options in matrices.items()}
    if total_bytes(smallest) > limit:
        return None
    chosen = _at_price(matrices, 0.0)
    if total_bytes(chosen) > limit:
        low, high = 0.0, 1.0
        while total_bytes(_at_price(matrices, high)) > limit and high < 1e30:
            low, high = high, 4 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if total_bytes(_at_price(matrices, middle)) > limit else (low, middle)
        chosen = _at_price(matrices, high)
        if total_bytes(chosen) > limit:  # options that save nothing at any price
            chosen = smallest
    return _filled(matrices, chosen, limit)


def total_bytes(chosen: Mapping[str, Option[T]]) -> float:
    """Bytes of a choice."""
    return sum(option.bytes for option in chosen.values())


def _at_price(matrices: Mapping[str, Sequence[Option[T]]], price: float) -> dict[str, Option[T]]:
    return {
        name: min(options, key=lambda option: (option.loss + price * option.bytes, option.bytes))
        for name, options in matrices.items()
    }


def _filled(
    matrices: Mapping[str, Sequence[Option[T]]], chosen: dict[str, Option[T]], limit: float
) -> dict[str, Option[T]]:
    """Spend what is left on the options that save most loss a byte, as long as one fits."""
    chosen = dict(chosen)
    while True:
        left = limit - total_bytes(chosen)
        better = [
            ((chosen[name].loss - option.loss) / max(option.bytes - chosen[name].bytes, 1e-9), name, option)
            for name, options in matrices.items()
            for option in options
            if option.loss < chosen[name].loss and option.bytes - chosen[name].bytes <= left
        ]
        if not better:
            return chosen
        _, name, option = max(better, key=lambda item: item[0])
        chosen[name] = option
