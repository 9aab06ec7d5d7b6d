"""A tokenizer of the Llama kind that spells characters it does not know in bytes."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

__all__ = ["fallback_tokenizer"]


def fallback_tokenizer(letters: str) -> Tokenizer:
    """Byte fallback without an entry for the space mark: a space is three tokens, which decode to three bytes.

    Args:
        letters: characters that have an entry of their own.
    """
    vocabulary = {"<unk>": 0, "</s>": 1, **{f"<0x{i:02X}>": 2 + i for i in range(256)}}
    vocabulary |= {letter: len(vocabulary) + i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer
