"""How many bytes of text each token stands for, in the accounting of openai/parameter-golf.

Its table has, for each token, the bytes of its piece without a leading space, whether a space leads, and whether it is
no text at all (control tokens). A leading space counts as a byte unless the token before it is no text: there it is the
space that SentencePiece puts before a text. A byte token counts one. Byte-level tokenizers have no such space.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from questlm.data.byte_count import token_lengths
from questlm.data.tokenizer import tokenizer_size
from questlm.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TokenBytes"]

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TokenBytes(NamedTuple):
    """The table of a tokenizer, one entry for each id.

    Attributes:
        own: bytes without a leading space, int64.
        spaced: whether a space leads.
        silent: whether the token stands for no text.
    """

    own: NDArray[np.int64]
    spaced: NDArray[np.bool_]
    silent: NDArray[np.bool_]

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer) -> TokenBytes:
        """The table of a tokenizer.json."""
        special = {index for index, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        lengths, size = token_lengths(tokenizer), tokenizer_size(tokenizer)
        if lengths is not None:
            silent = np.isin(np.arange(size), list(special))
            return cls(lengths, np.zeros(size, np.bool_), silent)
        table = cls(np.zeros(size, np.int64), np.zeros(size, np.bool_), np.ones(size, np.bool_))
        for piece, index in tokenizer.get_vocab().items():
            if index not in special:
                table._set(index, piece, _BYTE.fullmatch(piece) is not None)
        return table

    @classmethod
    def of_sentencepiece(cls, path: Path) -> TokenBytes:
        """The table of a SentencePiece model, which the contest's shards come with.

        Raises:
            MissingDependencyError: the package sentencepiece is not installed.
            DataError: the file is no such model.
        """
        model = _sentencepiece(path)
        size = int(model.vocab_size())
        table = cls(np.zeros(size, np.int64), np.zeros(size, np.bool_), np.ones(size, np.bool_))
        for index in range(size):
            if not (model.is_control(index) or model.is_unknown(index) or model.is_unused(index)):
                table._set(index, model.id_to_piece(index), model.is_byte(index))
        return table

    def decoded_bytes(self, path: Path, tokens: NDArray[np.int64]) -> int:
        """Return the bytes of what a SentencePiece model decodes `tokens` to, text by text: what `total` should be."""
        model = _sentencepiece(path)
        texts = np.split(tokens, np.flatnonzero(self.silent[tokens]))
        pieces = ([int(token) for token in text if not self.silent[token]] for text in texts)
        return sum(len(model.decode(piece).encode()) for piece in pieces)

    def counts(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes of each of `tokens` (n,) but the first, which only says whether text goes before: (n - 1,).

        Raises:
            DataError: a token that the table does not have.
        """
        if len(tokens) and int(tokens.max()) >= len(self.own):
            raise DataError(
                f"the text holds the token {int(tokens.max())}, but the tokenizer whose bytes are counted has "
                f"{len(self.own)}; give the one that the text was made tokens with"
            )
        before, after = tokens[:-1], tokens[1:]
        counted: NDArray[np.int64] = self.own[after] + (self.spaced[after] & ~self.silent[before])
        return counted

    def total(self, tokens: NDArray[np.int64]) -> int:
        """Return the bytes of all tokens, taken as the beginning of a text."""
        counted = int(self.counts(tokens).sum())
        return counted + (int(self.own[tokens[0]]) if len(tokens) else 0)

    def _set(self, index: int, piece: str, is_byte: bool) -> None:
        self.silent[index] = False
        self.spaced[index] = not is_byte and piece.startswith(_SPACE)
        text = piece[1:] if self.spaced[index] else piece
        self.own[index] = 1 if is_byte else len(text.replace(_SPACE, " ").encode())


def _sentencepiece(path: Path) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise MissingDependencyError("sentencepiece", "contest", "--sentencepiece") from None
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError, TypeError, ValueError) as problem:
        raise DataError(f"{path} is not a SentencePiece model: {problem}") from None
