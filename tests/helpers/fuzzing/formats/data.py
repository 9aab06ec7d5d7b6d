"""What training reads: text in each compression, tokenizers, token shards, and prepared data in the cache."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers

from helpers.fuzzing.folders import rewrite_manifest
from helpers.fuzzing.formats.artifacts import redigest
from helpers.fuzzing.formats.base import FolderFormat, require
from helpers.fuzzing.mutations import mutated_bytes, mutated_json, mutated_text
from questlm.config import DataConfig
from questlm.data import PreparedData, prepare, tokenizer_size, train_tokenizer
from questlm.data.readers import read_pieces
from questlm.data.shards import open_shards, write_shards
from questlm.data.tokenizer import load_tokenizer
from questlm.manifest import MANIFEST_NAME

__all__ = ["DOCUMENTS", "Cache", "Shards", "Texts", "Tokenizers"]

_TALE = "the quick brown fox jumps over a lazy dog while seven wizards quietly bake naïve cakes"
_WORDS = _TALE.split()
_TEXT = "\n".join(
    " ".join(_WORDS[(line * 7 + step) % len(_WORDS)] for step in range(5 + line % 7)) for line in range(120)
)
DOCUMENTS = [_TEXT[start : start + 400] for start in range(0, len(_TEXT), 400)]
_BOMB = 300 * 2**20  # bytes, from a file of some kilobytes
_EXTENSIONS = ("txt", "jsonl", "parquet")


def _check(data: PreparedData) -> None:
    """Tokens that a model of `vocab_size` can look up, and sizes that are numbers."""
    for stream in (data.train, data.val):
        largest = max((int(chunk.max()) for chunk in stream.chunks()), default=0)
        require(largest < data.vocab_size, f"the token {largest} of a vocabulary of {data.vocab_size}")
    size = data.val_bytes
    require(size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0), f"{size!r:.50} bytes")
    require(isinstance(data.val_hash, str) and len(data.val_hash) == 64, f"the hash {data.val_hash!r:.50}")
    require(data.vocab_size < 2**24, f"a vocabulary of {data.vocab_size}")


# -- text --------------------------------------------------------------------------------------------------------------


def _compressed(data: bytes, compression: str) -> bytes:
    if compression == "gz":
        return gzip.compress(data, mtime=0)
    if compression == "xz":
        return lzma.compress(data, preset=0)
    if compression == "zst":
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return data


class Texts(FolderFormat):
    """.txt, .jsonl and .parquet, each plain and compressed, with damage before or after compressing."""

    name = "text"
    _chosen = ""

    def build(self, samples: Path) -> None:
        (samples / "text.txt").write_text("\n<|endoftext|>\n".join(DOCUMENTS))
        lines = [json.dumps({"text": text, "number": number}) for number, text in enumerate(DOCUMENTS)]
        (samples / "text.jsonl").write_text("\n".join(lines) + "\n")
        table = pyarrow.table({"text": DOCUMENTS, "number": list(range(len(DOCUMENTS)))})
        parquet.write_table(table, samples / "text.parquet", row_group_size=7)
        parquet.write_table(table, samples / "plain.parquet", compression="none", use_dictionary=False)
        for compression in ("gz", "xz", "zst"):
            for extension in _EXTENSIONS:
                data = (samples / f"text.{extension}").read_bytes()
                (samples / f"text.{extension}.{compression}").write_bytes(_compressed(data, compression))
        (samples / "bomb.jsonl.zst").write_bytes(_compressed(b'{"text": "' + b"a" * _BOMB, "zst"))
        (samples / "bomb.txt.zst").write_bytes(_compressed(b"a" * _BOMB, "zst"))

    def mutate(self, draw: random.Random) -> str:
        if draw.random() < 0.005:
            self._chosen = draw.choice(("bomb.jsonl.zst", "bomb.txt.zst"))
            return self._chosen
        extension, compression = draw.choice(_EXTENSIONS), draw.choice(("", "gz", "xz", "zst"))
        self._chosen = name = f"text.{extension}{compression and '.' + compression}"
        if draw.random() < 0.5 and compression:  # damage to the compressed file
            data, what = mutated_bytes(draw, self.folder.files[name])
            self.folder.write(name, data)
            return f"{name}: compressed {what}"
        plain = self.folder.files[f"text.{extension}"]
        if extension == "parquet" and draw.random() < 0.5:
            plain = self.folder.files["plain.parquet"]
        if extension == "jsonl" and draw.random() < 0.5:
            lines = plain.decode().splitlines()
            at = draw.randrange(len(lines))
            line, what = mutated_json(draw, lines[at])
            data = "\n".join(lines[:at]).encode() + b"\n" + line + b"\n" + "\n".join(lines[at + 1 :]).encode()
        elif extension != "parquet" and draw.random() < 0.5:
            text, what = mutated_text(draw, plain.decode())
            data = text.encode(errors="surrogatepass")
        else:
            data, what = mutated_bytes(draw, plain)
        self.folder.write(name, _compressed(data, compression))
        return f"{name}: {what}"

    def read(self) -> None:
        path = self.folder.path / self._chosen
        characters = 0
        with path.open("rb") as file:
            for piece in read_pieces(file, path, "text"):
                require(len(piece.text) <= 2**20, f"a piece of {len(piece.text)} characters")
                piece.text.encode()
                characters += len(piece.text)
        require(characters < 2**24, f"{characters} characters from a file of {path.stat().st_size} bytes")


# -- tokenizers --------------------------------------------------------------------------------------------------------


class Tokenizers(FolderFormat):
    """tokenizer.json of byte-level BPE, BPE with byte fallback, WordPiece and words; text is then tokenised with it."""

    name = "tokenizer"
    _chosen = ""

    def build(self, samples: Path) -> None:
        train_tokenizer(DOCUMENTS, 300).save(str(samples / "bytes.json"))
        end = {"<|endoftext|>": 0}
        fallback = end | {"<unk>": 1} | {f"<0x{i:02X}>": 2 + i for i in range(256)} | {"a": 258, "b": 259, "ab": 260}
        merges = [("a", "b")]
        bytes_too = models.BPE(fallback, merges, byte_fallback=True, unk_token="<unk>")
        Tokenizer(bytes_too).save(str(samples / "fallback.json"))
        words = end | {"[UNK]": 1} | {word: 2 + at for at, word in enumerate(_WORDS)}
        for name, kind in (("words", models.WordLevel), ("pieces", models.WordPiece)):
            tokenizer = Tokenizer(kind(words, unk_token="[UNK]"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer.save(str(samples / f"{name}.json"))
        (samples / "text.txt").write_text("\n<|endoftext|>\n".join(DOCUMENTS[:12]))

    def mutate(self, draw: random.Random) -> str:
        self._chosen = name = draw.choice(("bytes.json", "fallback.json", "words.json", "pieces.json"))
        if draw.random() < 0.02:
            return self.folder.displace(draw, name)
        data, what = mutated_json(draw, self.folder.files[name].decode())
        self.folder.write(name, data)
        return f"{name}: {what}"

    def read(self) -> None:
        path = self.folder.path / self._chosen
        size = tokenizer_size(load_tokenizer(path))
        require(size <= 2**24, f"a tokenizer of {size} entries")
        source, cache = self.folder.path / "text.txt", self.folder.path / "cache"
        _check(prepare(DataConfig(source=str(source), tokenizer=str(path), val_fraction=0.2, cache_dir=str(cache))))


# -- token shards ------------------------------------------------------------------------------------------------------


class Shards(FolderFormat):
    """Folders of token shards of 16 and of 32 bits, with a tokenizer, and what the cache remembers of them."""

    name = "shards"
    _chosen = ""

    def build(self, samples: Path) -> None:
        draw = np.random.default_rng(0)
        for width, vocabulary in (("narrow", 300), ("wide", 100_000)):
            (samples / width).mkdir()
            for part in ("train", "val"):
                write_shards(samples / width, f"tokens_{part}", [draw.integers(0, 300, 500)], vocabulary)
        train_tokenizer(DOCUMENTS, 300).save(str(samples / "tokenizer.json"))
        for width in ("narrow", "wide"):
            self._prepare(width, samples)

    def _prepare(self, width: str, base: Path) -> PreparedData:
        tokenizer = str(base / "tokenizer.json")
        return prepare(DataConfig(source=str(base / width), tokenizer=tokenizer, cache_dir=str(base / "cache")))

    def mutate(self, draw: random.Random) -> str:
        self._chosen = draw.choice(("narrow", "wide"))
        if draw.random() < 0.3:
            name = draw.choice([name for name in sorted(self.folder.files) if name.startswith("cache")])
            data, what = mutated_json(draw, self.folder.files[name].decode())
        else:
            name = f"{self._chosen}/tokens_{draw.choice(('train', 'val'))}_000000.bin"
            if draw.random() < 0.03:
                return self.folder.displace(draw, name)
            old = self.folder.files[name]
            head, what = mutated_bytes(draw, old[:12])
            data = head + old[12:]
            if draw.random() < 0.5:
                data, what = mutated_bytes(draw, old)
        self.folder.write(name, data)
        return f"{name}: {what}"

    def read(self) -> None:
        data = self._prepare(self._chosen, self.folder.path)
        _check(data)
        paths = [path for path in (self.folder.path / self._chosen).glob("*.bin") if path.is_file()]
        require(len(data.train) + len(data.val) == len(open_shards(paths)), "tokens are missing or too many")


# -- the cache ---------------------------------------------------------------------------------------------------------


class Cache(FolderFormat):
    """Prepared data in the cache, with a new manifest. Damaged data are made again, so they are always right."""

    name = "cache"

    def build(self, samples: Path) -> None:
        (samples / "text.txt").write_text("\n<|endoftext|>\n".join(DOCUMENTS))
        data = self._prepare(samples)
        np.save(samples / "train.npy", data.train.read(0, len(data.train)))

    def open(self, samples: Path, scratch: Path) -> None:
        super().open(samples, scratch)
        self._train = np.load(samples / "train.npy")
        manifest = next(name for name in self.folder.files if name.endswith(MANIFEST_NAME))
        self._entry = manifest.removesuffix(MANIFEST_NAME)

    def _prepare(self, base: Path) -> PreparedData:
        cache = str(base / "cache")
        return prepare(DataConfig(source=str(base / "text.txt"), vocab_size=300, val_fraction=0.1, cache_dir=cache))

    def mutate(self, draw: random.Random) -> str:
        self._same = True  # whether it can only be read as it was, or made again
        names = [name for name in sorted(self.folder.files) if name.startswith(self._entry)]
        name = draw.choice(names)
        entry, old = self.folder.path / self._entry, self.folder.files[name]
        if draw.random() < 0.1:
            return self.folder.displace(draw, name)
        if draw.random() < 0.05:
            stem = draw.choice(("tokens_train", "tokens_val"))
            self.folder.write(f"{self._entry}{stem}_000001.bin", self.folder.files[f"{self._entry}{stem}_000000.bin"])
            return f"a stray shard of {stem}"
        if name.endswith(".bin"):
            data, what = mutated_bytes(draw, old)
        else:
            data, what = mutated_json(draw, old.decode())
        self.folder.write(name, data)
        if name.endswith(MANIFEST_NAME):
            matches = bool(redigest(draw, entry))
        elif matches := draw.random() < 0.8:
            rewrite_manifest(entry)
        self._same = not matches
        return f"{name.removeprefix(self._entry)}: {what}{', with a new manifest' if matches else ''}"

    def read(self) -> None:
        data = self._prepare(self.folder.path)
        _check(data)
        text = self.folder.path / "text.txt"
        if self._same and text.is_file() and text.read_bytes() == self.folder.files["text.txt"]:
            read = data.train.read(0, len(data.train))
            require(np.array_equal(read, self._train), "other tokens than were prepared")
