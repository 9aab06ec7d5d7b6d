"""From token ids to text while they arrive, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

__all__ = ["TextDecoder", "until_stop"]

_BROKEN = "\ufffd"


class TextDecoder:
    """Text of the token ids that follow a prompt, in pieces, each as soon as it is certain.

    A character may take several tokens, and decoding only its first ones gives U+FFFD; text is held back until it no
    longer ends with one, or the ids end. Some tokenizers drop the space before a first word, so new ids are decoded
    together with those before them: the prompt at first, then the ids of the last piece. Text that may be the beginning
    of a stop string is held back too.

    Args:
        stop: strings before which the text ends; the one that is complete first decides.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._window = list(prompt)
        self._last = len(self._window)  # where the ids after the last whole piece begin
        self._shown = len(tokenizer.decode(self._window).rstrip(_BROKEN))
        self._held = ""
        self.stopped = False
        """Whether a stop string has come; what follows it is no part of the text."""

    def add(self, token: int) -> str:
        """Take the next id; return the text that has become certain."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        certain = len(text.rstrip(_BROKEN))
        new = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if certain == len(text):
            self._window = self._window[self._last :]
            self._last, self._shown = len(self._window), len(self._tokenizer.decode(self._window))
        return self._release(new)

    def finish(self) -> str:
        """The text still held back, when no id follows."""
        rest = self._release(self._tokenizer.decode(self._window)[self._shown :])
        return rest if self.stopped else rest + self._held

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        end = until_stop(text, self._stop)
        self.stopped = end is not None
        if end is None:
            end = len(text) - _possible_start(text, self._stop)
        self._held = text[end:]
        return text[:end]


def until_stop(text: str, stop: Sequence[str]) -> int | None:
    """Length of `text` before the stop string that is complete first, of two at once the longer; None without one."""
    found = [(text.find(each) + len(each), -len(each)) for each in stop if each in text]
    if not found:
        return None
    end, negative_length = min(found)
    return end + negative_length


def _possible_start(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string begins, but does not end."""
    longest = max((len(each) for each in stop), default=0)
    lengths = range(min(len(text), longest - 1), 0, -1)
    return next((n for n in lengths if any(each.startswith(text[-n:]) for each in stop)), 0)
