"""Names that tokenizers give to the token that ends a document, likeliest first."""

from __future__ import annotations

__all__ = ["END_OF_TEXT", "END_OF_TEXT_NAMES"]

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>")
