"""Text piece by piece while it is generated, and how fast it came."""

from __future__ import annotations

import time
from collections.abc import Iterator

from questlm.inference.text import TextDecoder

__all__ = ["TextStream"]


class TextStream(Iterator[str]):
    """Pieces of generated text. Generation begins with the first piece asked for.

    Attributes:
        tokens: how many tokens have been generated.
        first_token_seconds: time to read the prompt and choose the first token; None before that.
    """

    def __init__(self, ids: Iterator[int], decoder: TextDecoder) -> None:
        self.tokens = 0
        self.first_token_seconds: float | None = None
        self._first = self._latest = 0.0
        self._pieces = self._decode(ids, decoder)

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def tokens_per_second(self) -> float | None:
        """Speed from the first token to the last, with what the reader of the pieces did between; None below two."""
        return (self.tokens - 1) / (self._latest - self._first) if self.tokens > 1 else None

    def _decode(self, ids: Iterator[int], decoder: TextDecoder) -> Iterator[str]:
        begin = time.perf_counter()
        for token in ids:
            self._latest = time.perf_counter()
            self.tokens += 1
            if self.first_token_seconds is None:
                self._first, self.first_token_seconds = self._latest, self._latest - begin
            if piece := decoder.add(token):
                yield piece
            if decoder.stopped:
                return
        if rest := decoder.finish():
            yield rest
