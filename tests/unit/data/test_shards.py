from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from questlm.data import shards
from questlm.data.shards import ShardWriter, check_vocabulary, largest_id, open_shards, read_shard, write_shards
from questlm.errors import DataError


def write(path: Path, tokens: list[int], vocab_size: int = 65_536) -> Path:
    with ShardWriter(path, vocab_size) as writer:
        writer.append(np.array(tokens, dtype=np.int64))
    return path


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99_999), max_size=9), max_size=8), st.sampled_from([5, 20, 1000]))
def test_round_trip_over_any_split(arrays: list[list[int]], shard_tokens: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_SHARD_TOKENS", shard_tokens)
        folder = Path(name)
        total = write_shards(folder, "part", [np.array(a, dtype=np.int64) for a in arrays], 100_000)
        files = sorted(folder.iterdir())
        stream = open_shards(files)
        assert stream.read(0, len(stream)).tolist() == [token for array in arrays for token in array]
        assert total == len(stream)
        assert all(len(read_shard(file)) <= max(shard_tokens, 9) for file in files)


def test_bytes_are_those_of_the_public_format(tmp_path: Path) -> None:
    content = write(tmp_path / "a.bin", [1, 513, 65_535]).read_bytes()
    assert np.frombuffer(content[:1024], "<i4").tolist() == [20240520, 1, 3] + [0] * 253
    assert content[1024:] == bytes([1, 0, 1, 2, 255, 255])


def test_large_vocabularies_take_32_bits(tmp_path: Path) -> None:
    content = write(tmp_path / "a.bin", [65_536], vocab_size=65_537).read_bytes()
    assert np.frombuffer(content[:12], "<i4").tolist() == [20240801, 7, 1]
    assert np.frombuffer(content[1024:], "<u4").tolist() == [65_536]


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a.bin", 10) as writer:
        writer.append(np.array([1]))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("token", [-1, 10])
def test_refuses_to_write_an_id_outside_the_vocabulary(tmp_path: Path, token: int) -> None:
    with pytest.raises(DataError, match="do not fit a vocabulary of 10"):
        write(tmp_path / "a.bin", [token], vocab_size=10)


def test_refuses_more_tokens_than_the_header_can_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MAX_TOKENS", 2)
    with pytest.raises(DataError, match="more than 2 tokens"):
        write(tmp_path / "a.bin", [1, 2, 3])


@pytest.mark.parametrize(
    ("header", "tokens", "message"),
    [
        ([7, 1, 2], 2, "begins with 7, but a token shard begins with 20240520"),
        ([20240520, 2, 2], 2, "of version 2, but only version 1"),
        ([20240801, 1, 1], 2, "of version 1, but only version 7"),
        ([20240520, 1, 3], 2, r"1028 bytes long, but its header promises 3 tokens, which is 1030"),
        ([20240520, 1, 1], 2, "promises 1 tokens"),
        ([20240520, 1, -1], 2, "claims -1 tokens"),
    ],
)
def test_damaged_shards(tmp_path: Path, header: list[int], tokens: int, message: str) -> None:
    path = tmp_path / "bad.bin"
    full = np.zeros(256, "<i4")
    full[:3] = header
    path.write_bytes(full.tobytes() + bytes(2 * tokens))
    with pytest.raises(DataError, match=message) as caught:
        read_shard(path)
    assert "bad.bin" in str(caught.value)


def test_files_that_are_no_shard_at_all(tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="100 bytes long, but a token shard begins with a header of 1024"):
        read_shard(tmp_path / "short.bin")
    with pytest.raises(DataError, match="cannot be read"):
        read_shard(tmp_path / "none.bin")


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", [])
    assert len(open_shards([path])) == 0
    assert largest_id(path) == (-1, 0)


def test_check_vocabulary_names_the_id_its_place_and_the_file(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.bin", [0, 9]), write(tmp_path / "bad.bin", [1, 12, 3])
    check_vocabulary([good, bad], 13)
    with pytest.raises(DataError, match=r"bad\.bin holds the token id 12 at position 1, .* only 12 entries"):
        check_vocabulary([good, bad], 12)
