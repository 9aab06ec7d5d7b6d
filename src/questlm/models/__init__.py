"""Models: a plain Llama, its key-value cache, and its names in Hugging Face checkpoints."""

from questlm.models.cache import KVCache
from questlm.models.llama import Llama
from questlm.models.names import from_hugging_face, module_to_hugging_face, to_hugging_face

__all__ = ["KVCache", "Llama", "from_hugging_face", "module_to_hugging_face", "to_hugging_face"]
