"""From text to batches of tokens: sources, tokenizers, a cache of token shards, and a loader that can resume."""

from questlm.data.loader import WindowLoader, windows
from questlm.data.prepare import holds_text, prepare, prepare_all
from questlm.data.prepared import PreparedData
from questlm.data.sources import locate, source_exists
from questlm.data.stream import TokenStream, require_window
from questlm.data.tokenizer import end_of_text_id, load_tokenizer, tokenizer_hash, tokenizer_size, train_tokenizer

__all__ = [
    "PreparedData",
    "TokenStream",
    "WindowLoader",
    "end_of_text_id",
    "holds_text",
    "load_tokenizer",
    "locate",
    "prepare",
    "prepare_all",
    "require_window",
    "source_exists",
    "tokenizer_hash",
    "tokenizer_size",
    "train_tokenizer",
    "windows",
]
