"""Text as tokens, made once and kept in the cache.

An entry is a folder named by everything that decides its content. It holds `tokenizer.json`, `tokens_train_*.bin` and
`tokens_val_*.bin` (public token shards, so that other tools, and `data.source`, read them too), and a manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from questlm.config import DataConfig
from questlm.data.byte_count import count_bytes
from questlm.data.cache import check_sealed, value_hash
from questlm.data.holdout import choose_documents, tail_start
from questlm.data.prepared import PreparedData, require_fit, stream_hash
from questlm.data.readers import Piece
from questlm.data.shards import open_shards, write_shards
from questlm.data.sources import Files, Hub
from questlm.data.stream import TokenStream
from questlm.data.tokenise import Documents, tokenise
from questlm.data.tokenizer import load_tokenizer, tokenizer_hash, tokenizer_size, train_tokenizer
from questlm.errors import DataError, quoted
from questlm.files import atomic_folder, atomic_write, remove_folder, seal
from questlm.progress import progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["prepare_text"]

_KIND = "questlm tokens"
_VERSION = 1
_TRAINING_CHARACTERS = 512 * 2**20  # of the corpus, that a tokenizer is sampled from: ten seconds of reading
_CHARACTERS_PER_TOKEN = 4
# The same for every budget, so that short and long runs are measured on the same text.
_HUB_VALIDATION_TOKENS = 10 * 2**20

TextSource = Files | Hub


def prepare_text(
    config: DataConfig,
    train: TextSource,
    val: TextSource | None,
    tokenizer: Tokenizer | None,
    vocab_size: int | None,
    limit: int | None,
    cache: Path,
) -> PreparedData:
    """Open the cache's entry for these settings, after making it where it is absent or damaged.

    `tokenizer` None means one trained on `train`; `limit` is the most tokens taken from `train`.
    """
    key = value_hash(
        {
            "version": _VERSION,
            "source": train.content_hash(cache),
            "val": val.content_hash(cache) if val else None,
            "tokenizer": tokenizer_hash(tokenizer) if tokenizer else {"train": config.vocab_size},
            "val_fraction": None if val else config.val_fraction,
            "text_field": config.text_field,
            "max_tokens": limit,
        }
    )
    entry = cache / key
    if entry.is_dir():
        try:
            return _open(entry, config.source, vocab_size)
        except _DamagedError:
            with suppress(OSError):  # such as when another process found the damage first
                remove_folder(entry)
    try:
        _build(entry, config, train, val, tokenizer, vocab_size, limit)
    except OSError as problem:
        if not entry.is_dir():  # else another process finished the same entry first, and we take that
            raise DataError(
                f"the prepared data cannot be written to {cache} ({problem.strerror}); "
                "set data.cache_dir to a folder with enough room"
            ) from problem
    return _open(entry, config.source, vocab_size)


class _DamagedError(DataError):
    """An entry of the cache is not what was written there."""


def _open(entry: Path, source: str, vocab_size: int | None) -> PreparedData:
    try:
        details = check_sealed(entry, _KIND, _VERSION)
        tokenizer = load_tokenizer(entry / "tokenizer.json")
        train, val = _shards(entry, "tokens_train"), _shards(entry, "tokens_val")
    except DataError as problem:
        raise _DamagedError(str(problem)) from problem
    require_fit(tokenizer, vocab_size)
    size = vocab_size or tokenizer_size(tokenizer)
    return PreparedData(
        train=train,
        val=val,
        val_bytes=details["val_bytes"],
        tokenizer=tokenizer,
        vocab_size=size,
        data_hash=entry.name,
        val_hash=details["val_hash"],
        description=f"{source}: {len(train):,} training and {len(val):,} validation tokens ({details['held_out']})",
    )


def _build(
    entry: Path,
    config: DataConfig,
    train: TextSource,
    val: TextSource | None,
    tokenizer: Tokenizer | None,
    vocab_size: int | None,
    limit: int | None,
) -> None:
    with atomic_folder(entry) as folder:
        if tokenizer is None:
            tokenizer = _train_tokenizer(train, config.vocab_size, limit)
        require_fit(tokenizer, vocab_size)
        atomic_write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
        if val is None:
            val_bytes, held_out = _write_split(folder, train, tokenizer, config.val_fraction, limit)
        else:
            _write(folder, "tokens_train", train, tokenizer, limit)
            val_limit = _HUB_VALIDATION_TOKENS if isinstance(val, Hub) else None
            stream, documents = _write(folder, "tokens_val", val, tokenizer, val_limit)
            cut = stream.cut(len(stream) - documents.cut_tokens, len(stream))
            val_bytes, held_out = sum(documents.text_bytes) + count_bytes(tokenizer, cut), "a source of its own"
        val_hash = stream_hash(_shards(folder, "tokens_val"))
        seal(folder, _KIND, _VERSION, {"val_bytes": val_bytes, "val_hash": val_hash, "held_out": held_out})


def _train_tokenizer(source: TextSource, vocab_size: int, limit: int | None) -> Tokenizer:
    """Train on the beginning of `source`, as far as it is tokenised and at most 512 Mi characters of it."""
    characters = min(_TRAINING_CHARACTERS, _CHARACTERS_PER_TOKEN * limit if limit else _TRAINING_CHARACTERS)
    with progress(f"reading {source.name} for a tokenizer", source.size()) as update:
        return train_tokenizer(_first(source.pieces(update), characters), vocab_size)


def _first(pieces: Iterator[Piece], characters: int) -> Iterator[str]:
    for piece in pieces:
        yield piece.text
        characters -= len(piece.text)
        if characters <= 0:
            return


def _write(
    folder: Path, stem: str, source: TextSource, tokenizer: Tokenizer, limit: int | None
) -> tuple[TokenStream, Documents]:
    """Tokenise `source` into shards `stem_*.bin`; return them and the sizes of the documents."""
    documents = Documents()
    read = 0

    def report(done: int) -> None:
        nonlocal read
        read = done

    def arrays() -> Iterator[NDArray[np.int64]]:
        tokens = 0
        with progress(f"tokenising {source.name}", limit or source.size()) as update:
            for ids in tokenise(source.pieces(report), tokenizer, limit, documents):
                yield ids
                tokens += len(ids)
                update(tokens if limit else read, info=f"{tokens / 1e6:.1f} M tokens")

    if not write_shards(folder, stem, arrays(), tokenizer_size(tokenizer)):
        raise DataError(f"the source {quoted(source.name, 200)} holds no text: every document in it is empty")
    return _shards(folder, stem), documents


def _write_split(
    folder: Path, source: TextSource, tokenizer: Tokenizer, fraction: float, limit: int | None
) -> tuple[int, str]:
    """Tokenise `source`, then sort it into training and validation; return the latter's bytes and what it is."""
    stream, documents = _write(folder, "all", source, tokenizer, limit)
    lengths = np.array(documents.tokens, dtype=np.int64)
    chosen = choose_documents(lengths, len(stream), fraction)
    if chosen is None:
        start = tail_start(len(stream), fraction)
        train, val = stream.cut(0, start), stream.cut(start, len(stream))
        val_bytes, held_out = count_bytes(tokenizer, val), "the last of the corpus"
    else:
        train, val = _divide(stream, lengths, chosen)
        val_bytes = int(np.array(documents.text_bytes, dtype=np.int64)[chosen].sum())
        held_out = f"{chosen.sum():,} of {len(chosen):,} documents"
    write_shards(folder, "tokens_train", train.chunks(), tokenizer_size(tokenizer))
    write_shards(folder, "tokens_val", val.chunks(), tokenizer_size(tokenizer))
    for path in folder.glob("all_*.bin"):
        path.unlink()
    return val_bytes, held_out


def _divide(
    stream: TokenStream, lengths: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> tuple[TokenStream, TokenStream]:
    """`stream` without the chosen documents, and these; a document that was cut short at the end trains."""
    borders = np.concatenate([[0], np.cumsum(lengths)])
    marks = np.append(chosen, False)
    changes = [0, *(np.flatnonzero(marks[1:] != marks[:-1]) + 1).tolist()]
    positions = [*borders[changes].tolist(), len(stream)]
    runs = [stream.cut(start, stop) for start, stop in pairwise(positions)]
    first_is_chosen = int(marks[0])
    return TokenStream.join(runs[first_is_chosen::2]), TokenStream.join(runs[1 - first_is_chosen :: 2])


def _shards(folder: Path, stem: str) -> TokenStream:
    return open_shards(sorted(folder.glob(f"{stem}_*.bin")))
