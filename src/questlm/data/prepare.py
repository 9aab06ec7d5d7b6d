"""Turn the data settings of a run into the tokens that it trains and validates on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from questlm.config import DataConfig
from questlm.data.byte_count import count_bytes
from questlm.data.cache import COUNT, FACTS, HASH, cache_folder, largest_id_of, remember, value_hash
from questlm.data.corpus import prepare_text
from questlm.data.holdout import tail_start
from questlm.data.prepared import PreparedData, require_fit, stream_hash
from questlm.data.shards import check_vocabulary, open_shards
from questlm.data.sources import Shards, resolve
from questlm.data.stream import TokenStream
from questlm.data.tokenizer import (
    end_of_text_id,
    load_tokenizer,
    stated_chat_template,
    stated_end_of_text,
    tokenizer_hash,
    tokenizer_size,
)
from questlm.errors import ConfigError, quoted
from questlm.files import remove_leftovers, user_path
from questlm.tokenizer_files import usual_end_of_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["holds_text", "prepare", "prepare_all"]

_DECODED = (
    "token shards hold no text, so the bytes of bits per byte are those that the tokens decode to; a tokenizer that "
    "loses text makes them fewer than the text had"
)


def prepare(config: DataConfig, vocab_size: int | None = None, max_tokens: int | None = None) -> PreparedData:
    """Find the source, tokenise it unless the cache has its tokens, and hold out validation tokens.

    Args:
        config: the data settings.
        vocab_size: of the model; None: as large as the tokenizer.
        max_tokens: at most this many tokens of the source are used, and at most `config.max_tokens`; held-out tokens
            are among them. A separate validation source is used completely, except that of a hub data set: its first 10
            Mi tokens.

    Token shards are read where they are; text is tokenised into the cache, and a second call only opens that.

    Raises:
        DataError: a source, tokenizer or shard cannot be used or does not fit the model.
        ConfigError: the size of the vocabulary cannot be known.
        MissingDependencyError: reading needs a package that is absent.
    """
    cache = cache_folder(config)
    for folder in (cache, cache / FACTS):
        remove_leftovers(folder)
    limit = min((given for given in (config.max_tokens, max_tokens) if given is not None), default=None)
    tokenizer = template = None
    if config.tokenizer != "train":
        path = user_path(config.tokenizer)
        tokenizer = load_tokenizer(path)
        require_fit(tokenizer, vocab_size)
        if config.end_of_text is None:
            config = config.model_copy(update={"end_of_text": stated_end_of_text(tokenizer, path.parent)})
        template = stated_chat_template(path.parent)
    train, val = resolve(config, cache)
    if isinstance(train, Shards):
        assert val is None or isinstance(val, Shards)
        data = _prepare_shards(config, train, val, tokenizer, vocab_size, limit, cache)
    else:
        assert not isinstance(val, Shards)
        data = prepare_text(config, train, val, tokenizer, vocab_size, limit, cache)
    return replace(data, chat_template=template)


def prepare_all(config: DataConfig, vocab_size: int | None = None) -> PreparedData:
    """Like `prepare`, but all of the source validates and nothing trains: for evaluating on other text.

    Of a hub data set with a validation split, that split is read.
    """
    data = prepare(config, vocab_size)
    if config.source.startswith("hf:"):
        return replace(data, train=TokenStream([]), train_bytes=0)
    whole = TokenStream.join([data.train, data.val])
    if data.train_bytes is not None and data.val_bytes is not None:
        text_bytes: int | None = data.train_bytes + data.val_bytes
    else:
        text_bytes = None if data.tokenizer is None else count_bytes(data.tokenizer, whole, data.end_of_text)
    return replace(data, train=TokenStream([]), train_bytes=0, val=whole, val_bytes=text_bytes)


def holds_text(config: DataConfig) -> bool:
    """Return whether the source is text, which needs a tokenizer, and not token shards. Errors as `prepare`."""
    train, _ = resolve(config, cache_folder(config))
    return not isinstance(train, Shards)


def _prepare_shards(
    config: DataConfig,
    train: Shards,
    val: Shards | None,
    tokenizer: Tokenizer | None,
    vocab_size: int | None,
    limit: int | None,
    cache: Path,
) -> PreparedData:
    if tokenizer is None and vocab_size is None:
        raise ConfigError(
            f"the token shards {quoted(config.source, 200)} do not say how large their vocabulary is; "
            "add --set model.vocab_size=N or --set data.tokenizer=PATH"
        )
    entries = tokenizer_size(tokenizer) if tokenizer else vocab_size or 0
    paths = train.paths + (val.paths if val else ())
    check_vocabulary(paths, entries, lambda path: largest_id_of(path, cache))

    stream = open_shards(train.paths)
    stream = stream.slice(0, min(limit or len(stream), len(stream)))
    if val:
        train_stream, val_stream = stream, open_shards(val.paths)
    else:
        start = tail_start(len(stream), config.val_fraction)
        train_stream, val_stream = stream.slice(0, start), stream.slice(start, len(stream))

    # The hash covers what decides the tokens: the limit and the held-out part, but not the size of the model.
    source = [train.content_hash(cache), val.content_hash(cache) if val else config.val_fraction, limit]
    val_hash = remember(cache, ["val_hash", source], lambda: stream_hash(val_stream), HASH)
    val_bytes = end = None
    if tokenizer:
        coder = tokenizer
        named = config.end_of_text is not None
        end = end_of_text_id(tokenizer, config.end_of_text) if named else usual_end_of_text(tokenizer)
        key = ["val_bytes", source, tokenizer_hash(tokenizer), end]
        val_bytes = remember(cache, key, lambda: count_bytes(coder, val_stream, end), COUNT)
    return PreparedData(
        train=train_stream,
        val=val_stream,
        train_bytes=None,
        val_bytes=val_bytes,
        tokenizer=tokenizer,
        vocab_size=vocab_size or entries,
        data_hash=value_hash(source),
        val_hash=val_hash,
        description=f"{config.source}: {len(train_stream):,} training and {len(val_stream):,} validation tokens "
        f"({'shards of their own' if val else 'the last of the shards'})",
        end_of_text=end,
        end_of_text_name=config.end_of_text,
        notes=(_DECODED,) if tokenizer else (),
    )
