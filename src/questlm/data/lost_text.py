"""Find what a tokenizer loses: whether tokens decode to the text that they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from questlm.data.tokenise import literal_coder
from questlm.errors import DataError, quoted
from questlm.tokenizer_files import library_failures

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["describe_lost_text"]

_SHOWN_CHARACTERS = 12


def describe_lost_text(tokenizer: Tokenizer, samples: Sequence[str]) -> str | None:
    """Describe what `tokenizer` loses of `samples`, with an example; None if they decode unchanged."""
    coder = literal_coder(tokenizer)
    with library_failures(lambda reason: DataError(f"the tokenizer cannot decode its own tokens: {reason}")):
        encodings = coder.encode_batch(list(samples), add_special_tokens=False)
        decoded = coder.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
    # Many tokenizers add a space before the text; nothing is lost by that.
    pairs = [(text, back) for text, back in zip(samples, decoded, strict=True) if back not in (text, f" {text}")]
    if not pairs:
        return None
    kinds = [name for name, is_lost in _KINDS.items() if any(is_lost(*pair) for pair in pairs)]
    unknown = _unknown_id(coder)
    if any(unknown in encoding.ids for encoding in encodings):
        kinds.insert(0, "words or characters that it does not know")
    before, after = _difference(*pairs[0])
    return (
        f"the tokenizer loses text ({', '.join(kinds) or 'some characters'}; {len(pairs):,} of {len(samples):,} "
        f"samples come back changed, such as {quoted(before)} as {quoted(after)}); bits per byte are over the bytes of "
        "the text as read"
    )


def _difference(text: str, back: str) -> tuple[str, str]:
    """Return both texts from shortly before the first character in which they differ."""
    shorter = min(len(text), len(back))
    first = next((index for index in range(shorter) if text[index] != back[index]), shorter)
    start = max(0, first - _SHOWN_CHARACTERS // 2)
    return text[start : start + _SHOWN_CHARACTERS], back[start : start + _SHOWN_CHARACTERS]


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the token for unknown text, or None."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") is not None:
        return tokenizer.token_to_id(model["unk_token"])
    unknown: int | None = model.get("unk_id")
    return unknown


def _has_upper(text: str) -> bool:
    return any(letter.isupper() for letter in text)


_KINDS: dict[str, Callable[[str, str], bool]] = {
    "upper case": lambda text, back: _has_upper(text) and not _has_upper(back),
    "white space": lambda text, back: (
        "".join(text.split()) == "".join(back.split()) or sum(map(str.isspace, text)) != sum(map(str.isspace, back))
    ),
    "characters beyond ASCII": lambda text, back: not text.isascii() and _beyond_ascii(text) != _beyond_ascii(back),
}


def _beyond_ascii(text: str) -> list[str]:
    return [letter for letter in text if not letter.isascii()]
