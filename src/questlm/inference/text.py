"""From token ids to text while they arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer

__all__ = ["decode_stream"]

_BROKEN = "\ufffd"


def decode_stream(tokenizer: Tokenizer, prompt: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """Text of each of `ids`, which follow `prompt`, as soon as it is certain.

    A character may take several tokens, and decoding only its first ones gives U+FFFD; text is held back until it no
    longer ends with one, or the ids end. Some tokenizers drop the space before a first word, so new ids are decoded
    together with those before them: the prompt at first, then the ids of the last piece.
    """
    window = list(prompt)
    last = len(window)  # where the ids after the last whole piece begin
    shown = len(tokenizer.decode(window).rstrip(_BROKEN))
    for token in ids:
        window.append(token)
        text = tokenizer.decode(window)
        certain = len(text.rstrip(_BROKEN))
        if certain > shown:
            yield text[shown:certain]
            shown = certain
        if certain == len(text):
            window = window[last:]
            last, shown = len(window), len(tokenizer.decode(window))
    if rest := tokenizer.decode(window)[shown:]:
        yield rest
