"""Tokenise text once and keep the tokens in the cache.

A cache entry is a folder whose name is a hash of everything that decides its content. It holds `tokenizer.json`,
`tokens_train_*.bin` and `tokens_val_*.bin` (public token shards, so that other tools, and `data.source`, can read them
too), and a manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from questlm.config import DataConfig
from questlm.data.cache import TOKENS_KIND, TOKENS_VERSION, check_sealed, largest_id_of, value_hash
from questlm.data.holdout import choose_documents, tail_start
from questlm.data.lost_text import describe_lost_text
from questlm.data.prepared import PreparedData, require_fit, stream_hash
from questlm.data.readers import Piece
from questlm.data.shards import check_vocabulary, open_shards, write_shards
from questlm.data.sources import Files, Hub
from questlm.data.stream import TokenStream
from questlm.data.tokenise import Documents, end_of_tokens, tokenise
from questlm.data.tokenizer import end_of_text_id, load_tokenizer, tokenizer_hash, tokenizer_size, train_tokenizer
from questlm.errors import DataError, quoted
from questlm.files import atomic_folder, atomic_write, remove_folder
from questlm.json_files import validated
from questlm.manifest import MANIFEST_NAME, write_manifest
from questlm.progress import progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["prepare_text"]

_TRAINING_CHARACTERS = 512 * 2**20  # read to sample text for a tokenizer; takes ten seconds
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
    """Return the tokens of `train` and `val` from the cache; tokenise them first where the entry is absent or damaged.

    `tokenizer` None trains one on `train`; `val` None holds out a part of `train`; `limit` is the largest number of
    tokens taken from `train`.
    """
    key = value_hash(
        {
            "version": TOKENS_VERSION,
            "source": train.content_hash(cache),
            "val": val.content_hash(cache) if val else None,
            "tokenizer": tokenizer_hash(tokenizer) if tokenizer else {"train": config.vocab_size},
            "val_fraction": None if val else config.val_fraction,
            "text_field": config.text_field,
            "end_of_text": config.end_of_text,
            "max_tokens": limit,
        }
    )
    entry = cache / key
    if entry.is_dir():
        try:
            return _open(entry, config, vocab_size)
        except _DamagedError:
            with suppress(OSError):  # such as when another process found the damage first
                remove_folder(entry)
    try:
        _build(entry, config, train, val, tokenizer, vocab_size, limit)
    except OSError as problem:
        if not entry.is_dir():  # otherwise another process finished the same entry first; use that
            raise DataError(
                f"the prepared data cannot be written to {cache} ({problem.strerror}); "
                "set data.cache_dir to a folder with enough room"
            ) from problem
    return _open(entry, config, vocab_size)


class _DamagedError(DataError):
    """A cache entry differs from what was written there."""


class _Details(BaseModel):
    """What the manifest of a cache entry records."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    train_bytes: Annotated[int, Field(ge=0)]
    val_bytes: Annotated[int, Field(ge=0)]
    val_hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    held_out: str
    notes: list[str]


_DETAILS = TypeAdapter(_Details)


def _open(entry: Path, config: DataConfig, vocab_size: int | None) -> PreparedData:
    try:
        manifest = check_sealed(entry, TOKENS_KIND, TOKENS_VERSION)
        details = validated(_DETAILS, manifest.details, entry / MANIFEST_NAME, DataError)
        tokenizer = load_tokenizer(entry / "tokenizer.json")
        train_shards, val_shards = (
            [entry / name for name in sorted(manifest.files) if name.startswith(stem)]
            for stem in ("tokens_train_", "tokens_val_")
        )
        # An id outside the vocabulary would end training with an index out of range.
        scan = partial(largest_id_of, cache=entry.parent)
        check_vocabulary([*train_shards, *val_shards], tokenizer_size(tokenizer), scan)
        train, val = open_shards(train_shards), open_shards(val_shards)
    except DataError as problem:
        raise _DamagedError(str(problem)) from problem
    require_fit(tokenizer, vocab_size)
    size = vocab_size or tokenizer_size(tokenizer)
    return PreparedData(
        train=train,
        val=val,
        train_bytes=details.train_bytes,
        val_bytes=details.val_bytes,
        tokenizer=tokenizer,
        vocab_size=size,
        data_hash=entry.name,
        val_hash=details.val_hash,
        description=f"{config.source}: {len(train):,} training and {len(val):,} validation tokens ({details.held_out})",
        end_of_text=end_of_text_id(tokenizer, config.end_of_text),
        end_of_text_name=config.end_of_text,
        notes=tuple(details.notes),
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
        coder = Coder(tokenizer, end_of_text_id(tokenizer, config.end_of_text))
        atomic_write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
        if val is None:
            train_bytes, val_bytes, held_out, notes = _write_split(folder, train, coder, config.val_fraction, limit)
        else:
            _, trained = _write(folder, "tokens_train", train, coder, limit)
            _, held = _write(folder, "tokens_val", val, coder, _HUB_VALIDATION_TOKENS if isinstance(val, Hub) else None)
            train_bytes, val_bytes, held_out = trained.all_bytes, held.all_bytes, "a source of its own"
            notes = _notes(tokenizer, {train.name: trained, val.name: held})
        details = _Details(
            train_bytes=train_bytes,
            val_bytes=val_bytes,
            val_hash=stream_hash(_written(folder, "tokens_val")),
            held_out=held_out,
            notes=notes,
        )
        write_manifest(folder, TOKENS_KIND, TOKENS_VERSION, details.model_dump())


class Coder(NamedTuple):
    """A tokenizer and the id of its token that ends a document."""

    tokenizer: Tokenizer
    end: int


def _notes(tokenizer: Tokenizer, sources: Mapping[str, Documents]) -> list[str]:
    """Describe for the user which rows were left out and what the tokenizer loses."""
    skipped = {name: documents.null_rows for name, documents in sources.items() if documents.null_rows}
    notes = [
        f"{rows:,} rows of {quoted(name, 200)} hold null instead of text and are skipped"
        for name, rows in skipped.items()
    ]
    lost = describe_lost_text(tokenizer, [text for documents in sources.values() for text in documents.samples])
    return notes if lost is None else [*notes, lost]


def _train_tokenizer(source: TextSource, vocab_size: int, limit: int | None) -> Tokenizer:
    """Train a tokenizer on the part of `source` that will be tokenised, at most its first 512 Mi characters."""
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
    folder: Path, stem: str, source: TextSource, coder: Coder, limit: int | None
) -> tuple[TokenStream, Documents]:
    """Tokenise `source` into shards `stem_*.bin`; return their tokens and the sizes of the documents."""
    documents = Documents()
    read = 0

    def report(done: int) -> None:
        nonlocal read
        read = done

    def arrays() -> Iterator[NDArray[np.int64]]:
        tokens = 0
        with progress(f"tokenising {source.name}", limit or source.size()) as update:
            for ids in tokenise(source.pieces(report), *coder, limit, documents):
                yield ids
                tokens += len(ids)
                update(tokens if limit else read, info=f"{tokens / 1e6:.1f} M tokens")

    if not write_shards(folder, stem, arrays(), tokenizer_size(coder.tokenizer)):
        nulls = f" ({documents.null_rows:,} rows hold null)" if documents.null_rows else ""
        raise DataError(f"the source {quoted(source.name, 200)} holds no text: every document in it is empty{nulls}")
    return _written(folder, stem), documents


def _write_split(
    folder: Path, source: TextSource, coder: Coder, fraction: float, limit: int | None
) -> tuple[int, int, str, list[str]]:
    """Tokenise `source` and split it into training and validation.

    Returns:
        The bytes of both, a description of what validates, and notes.
    """
    stream, documents = _write(folder, "all", source, coder, limit)
    lengths = np.array(documents.tokens, dtype=np.int64)
    chosen = choose_documents(lengths, len(stream), fraction)
    if chosen is None:
        start, train_bytes = _whole_characters(source, coder.tokenizer, documents, tail_start(len(stream), fraction))
        train, val = stream.slice(0, start), stream.slice(start, len(stream))
        val_bytes, held_out = documents.all_bytes - train_bytes, "the last of the corpus"
    else:
        train, val = _divide(stream, lengths, chosen)
        val_bytes = int(np.array(documents.text_bytes, dtype=np.int64)[chosen].sum())
        train_bytes, held_out = documents.all_bytes - val_bytes, f"{chosen.sum():,} of {len(chosen):,} documents"
    write_shards(folder, "tokens_train", train.chunks(), tokenizer_size(coder.tokenizer))
    write_shards(folder, "tokens_val", val.chunks(), tokenizer_size(coder.tokenizer))
    for path in folder.glob("all_*.bin"):
        path.unlink()
    return train_bytes, val_bytes, held_out, _notes(coder.tokenizer, {source.name: documents})


def _whole_characters(source: TextSource, tokenizer: Tokenizer, documents: Documents, position: int) -> tuple[int, int]:
    """Move `position` behind the character that it would divide; return it and the UTF-8 bytes of the text before it.

    The source is read once more up to there, because tokens alone do not tell which bytes they were.
    """
    start = text_bytes = 0
    texts = (piece.text for piece in source.pieces() if not piece.is_null)
    for text, tokens in zip(texts, documents.pieces, strict=False):
        if position < start + tokens:
            inside, inside_bytes = end_of_tokens(tokenizer, text, position - start, move=True)
            if inside >= tokens:  # no token would be left to validate on
                inside, inside_bytes = position - start, end_of_tokens(tokenizer, text, position - start)[1]
            return start + inside, text_bytes + inside_bytes
        start += tokens
        text_bytes += len(text.encode())
    raise DataError(f"the source {quoted(source.name, 200)} changed while it was read; try again")


def _divide(
    stream: TokenStream, lengths: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> tuple[TokenStream, TokenStream]:
    """Return the tokens without the chosen documents, and the chosen ones. A truncated last document trains."""
    borders = np.concatenate([[0], np.cumsum(lengths)])
    marks = np.append(chosen, False)
    changes = [0, *(np.flatnonzero(marks[1:] != marks[:-1]) + 1).tolist()]
    positions = [*borders[changes].tolist(), len(stream)]
    runs = [stream.slice(start, stop) for start, stop in pairwise(positions)]
    first_is_chosen = int(marks[0])
    return TokenStream.join(runs[first_is_chosen::2]), TokenStream.join(runs[1 - first_is_chosen :: 2])


def _written(folder: Path, stem: str) -> TokenStream:
    """Open the shards just written to `folder`, to which nothing else writes."""
    return open_shards(sorted(folder.glob(f"{stem}_*.bin")))
