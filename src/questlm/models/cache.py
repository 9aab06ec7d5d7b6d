"""Keys and values of past tokens, kept so that each new token costs one step.

Each sequence of a batch has a length of its own, and entry p of a sequence belongs to the token at position p. So
prompts of different lengths are padded on the right: what padding writes lies behind the sequence's length, no token
attends to it, and the tokens that follow overwrite it. Shapes do not depend on lengths, and nothing is read back to the
CPU, so a step can be recorded as a CUDA graph.

The layout, which native code reads and writes too:

    entries   (layers, 2, slots, kv_heads, width), contiguous; [:, 0] keys after rotation, [:, 1] values.
              Position p of sequence b is slot b * capacity + p; there are at least batch * capacity slots, more where
              `KVCache.keep` has dropped sequences. Of float32, bfloat16, or int8.
    scales    only where entries are int8: (layers, 2, slots, kv_heads, 1) float32, contiguous.
              A number is code * scale. Of the row of `width` numbers x of a token and head (of a key after rotation),
              in float32: scale = max |x| / 127, and code = x / max(scale, 2^-126), rounded to nearest with ties to even
              and bounded by -127 and 127 (`questlm.ops.reference.storage.to_int8_rows`).

Every token attends to keys and values as they are stored, its own included, in whatever pieces the tokens arrive.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.humanize import bytes_text
from questlm.memory import host_memory
from questlm.ops.reference.storage import from_int8_rows, to_int8_rows

__all__ = ["CacheStep", "KVCache"]

_BLOCK = 64
_SCALE = torch.float32


class CacheStep(NamedTuple):
    """Where the next tokens of each sequence go, and what they attend to; `KVCache.step` makes one.

    Attributes:
        entries, scales: the first batch * capacity slots of all layers, in the layout above; scales are None where
            entries are floats.
        positions: of the new tokens in their sequences, (batch, tokens) int64.
        slots: where the new tokens go in `entries`, (batch * tokens,) int64.
        mask: which of the first `window` entries each new token attends to, (batch, 1, tokens, window) bool. None: the
            cache is empty, so that new tokens attend to themselves and those before them in the same step.
        window: how many entries of each sequence attention reads.
    """

    entries: Tensor
    scales: Tensor | None
    positions: Tensor
    slots: Tensor
    mask: Tensor | None
    window: int

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' (batch, kv_heads, tokens, width) in one layer.

        Returns the keys and values to attend to, (batch, kv_heads, window, width), as they are stored: in the dtype of
        the cache, or of codes the numbers in the dtype of `keys` and `values`. Without a mask, those of the new tokens.
        """
        return self._extend((layer, 0), keys), self._extend((layer, 1), values)

    def _extend(self, place: tuple[int, int], new: Tensor) -> Tensor:
        rooms = [each[place] for each in (self.entries, self.scales) if each is not None]
        stored = [new.to(self.entries.dtype)] if self.scales is None else list(to_int8_rows(new))
        for part, room in zip(stored, rooms, strict=True):
            room.index_copy_(0, self.slots, part.transpose(1, 2).flatten(0, 1))
        if self.mask is not None:
            stored = [room.unflatten(0, (len(new), -1))[:, : self.window].transpose(1, 2) for room in rooms]
        return stored[0] if self.scales is None else from_int8_rows(stored[0], stored[1]).to(new.dtype)


class KVCache:
    """Room for `capacity` tokens of each of `batch` sequences, in every layer.

    Attributes:
        entries, scales: keys and values, in the layout that this module's docstring states.
        capacity: most tokens of a sequence. It changes only where `reserve` raises it.
        lengths: tokens that each sequence holds, (batch,) int64 on the device.
        window: how many entries of each sequence attention reads. It grows by blocks of 64 as tokens arrive; set to
            `capacity`, it stays, and then every step of one token has the same shapes.

    Args:
        dtype: of the entries: float32, bfloat16, or int8 for codes with a scale for each token and head.

    Raises:
        ConfigError: the device has no memory for so many tokens.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.layers, 2, batch * capacity, config.key_value_heads, config.head_width)
        self.entries, self.scales = _room(shape, dtype, torch.device(device))
        self.capacity, self.window = capacity, 0
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self._first_slots = torch.arange(batch, device=device) * capacity
        self._longest = 0  # at least the largest length; reading `lengths` would make the CPU wait for the GPU

    def reserve(self, capacity: int, sequences: int | None = None) -> None:
        """Make room for `capacity` tokens of each sequence where there is less; what is stored stays.

        The entries move in memory then, so call it before a step is recorded as a graph and not after.

        Args:
            sequences: how many there is to be room for; None: those that there are.

        Raises:
            ConfigError: the device has no memory for so many tokens.
        """
        if capacity <= self.capacity:
            return
        batch, (layers, both, _, heads, width) = len(self.lengths), self.entries.shape
        shape = (layers, both, max(batch, sequences or 0) * capacity, heads, width)
        grown = _room(shape, self.entries.dtype, self.entries.device)
        for old, new in zip((self.entries, self.scales), grown, strict=True):
            if old is not None and new is not None:
                stored = old.unflatten(2, (-1, self.capacity))[:, :, :batch, : self._longest]
                new.unflatten(2, (-1, capacity))[:, :, :batch, : self._longest] = stored
        (self.entries, self.scales), self.capacity = grown, capacity
        self._first_slots = torch.arange(batch, device=self.lengths.device) * capacity

    def keep(self, sequences: list[int]) -> None:
        """Go on with these of the sequences, and forget the others.

        Their keys and values move in place, so the memory stays as large as it was, and `add` uses what is free then.

        Args:
            sequences: each once, and none further back than it was: place i gets a sequence that is at i or behind it.
        """
        for place, sequence in enumerate(sequences):
            if place != sequence:
                for each in (self.entries, self.scales):
                    if each is not None:
                        stored = each.unflatten(2, (-1, self.capacity))[:, :, :, : self._longest]
                        stored[:, :, place] = stored[:, :, sequence]
        self.lengths, self._first_slots = self.lengths[sequences], self._first_slots[: len(sequences)]

    def add(self) -> None:
        """Begin one more sequence, behind the others, in the room of one that `keep` has dropped.

        Raises:
            ValueError: there is no such room.
        """
        batch, room = len(self.lengths), self.entries.shape[2] // self.capacity
        if batch == room:
            raise ValueError(f"the cache has room for {room} sequences, and holds as many")
        self.lengths = torch.cat((self.lengths, self.lengths.new_zeros(1)))
        self._first_slots = torch.arange(batch + 1, device=self.lengths.device) * self.capacity

    def limit_length(self, longest: int) -> None:
        """State the largest length, where the caller knows it.

        Counting each step as one of all sequences, the cache only knows a bound of it, which steps of different numbers
        of tokens and sequences that join or are dropped make larger than it need be.
        """
        self._longest = longest

    def erase_non_finite(self) -> None:
        """Put 0 in place of what is not finite: the next sequence there would multiply it by 0 and get no number."""
        for each in (self.entries, self.scales):
            if each is not None and each.is_floating_point():
                each.nan_to_num_(0.0, 0.0, 0.0)

    def check_room(self, batch: int, tokens: int) -> None:
        """Refuse a step of `tokens` tokens of each of `batch` sequences that does not fit.

        Raises:
            ValueError: the cache is for another number of sequences, or too small.
        """
        if batch != len(self.lengths):
            raise ValueError(f"the cache is for {len(self.lengths)} sequences, but {batch} were given")
        if (end := self._longest + tokens) > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, but {end} are needed")

    def step(self, batch: int, tokens: int) -> CacheStep:
        """Places of the next `tokens` tokens of each sequence.

        Raises:
            ValueError: the cache is for another number of sequences, or too small.
        """
        self.check_room(batch, tokens)
        end = self._longest + tokens
        self.window = max(self.window, min(self.capacity, _BLOCK * -(-end // _BLOCK)))
        device = self.lengths.device
        positions = self.lengths[:, None] + torch.arange(tokens, device=device)
        slots = (positions + self._first_slots[:, None]).flatten()
        mask = None
        if self._longest:
            mask = torch.arange(self.window, device=device) <= positions[:, None, :, None]
        used = slice(batch * self.capacity)
        entries, scales = self.entries[:, :, used], None if self.scales is None else self.scales[:, :, used]
        return CacheStep(entries, scales, positions, slots, mask, self.window)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, (batch * capacity, kv_heads, width) each."""
        used = slice(len(self.lengths) * self.capacity)
        return self.entries[index, 0, used], self.entries[index, 1, used]

    def advance(self, tokens: int, counts: Tensor | None = None) -> None:
        """Count the `tokens` of a step as seen: of each sequence the first `counts` (batch,), the rest is padding."""
        self._longest += tokens
        self.lengths += tokens if counts is None else counts

    def forget(self, tokens: int) -> None:
        """Take back the last `tokens` tokens of each sequence, which counted all of them."""
        self._longest -= tokens
        self.lengths -= tokens

    def count_recorded(self, tokens: int) -> None:
        """Count the `tokens` of a step that adds to `lengths` itself: a replayed CUDA graph, or native code."""
        self._longest += tokens


def _room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Entries of `shape`, and their scales where they are codes; all 0."""
    rows = (*shape[:-1], 1)
    needed = math.prod(shape) * dtype.itemsize + (math.prod(rows) * _SCALE.itemsize if dtype is torch.int8 else 0)
    memory = host_memory() if device.type == "cpu" else None
    try:
        # Linux grants a CPU more memory than there is, and ends the process where it is used.
        if memory is not None and needed > memory.free:
            raise MemoryError
        scales = torch.zeros(rows, dtype=_SCALE, device=device) if dtype is torch.int8 else None
        return torch.zeros(shape, dtype=dtype, device=device), scales
    except (MemoryError, RuntimeError):  # RuntimeError is also what torch raises where a GPU has no memory left
        raise ConfigError(
            f"keys and values of {shape[2]:,} tokens need {bytes_text(needed)}, which {device} does not have; "
            "give shorter or fewer prompts, or ask for fewer tokens"
        ) from None
