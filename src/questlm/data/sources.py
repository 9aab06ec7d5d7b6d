"""Resolve `data.source` to something that can be read: text files, a hub data set, or token shards."""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from questlm.config import DataConfig
from questlm.data.cache import NAMES, TOKENS_KIND, check_sealed, file_digest, remember, value_hash
from questlm.data.readers import (
    ALLOWED,
    Piece,
    file_kind,
    read_pieces,
    split_document,
)
from questlm.errors import DataError, MissingDependencyError, cleaned, quoted
from questlm.files import user_path
from questlm.json_files import read_json
from questlm.manifest import MANIFEST_NAME
from questlm.progress import progress

__all__ = ["Files", "Hub", "Shards", "Source", "locate", "resolve", "source_exists"]

_LEAST_STDLIB_BYTES = 10**6
_SLOW_BYTES = 2**30
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"})

Report = Callable[[int], None]


def _no_report(done: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Files:
    """Text files below `root`, in the order in which they are read."""

    name: str
    root: Path
    paths: tuple[Path, ...]
    text_field: str

    def size(self) -> int:
        """Return the bytes of all files as stored."""
        return sum(path.stat().st_size for path in self.paths)

    def content_hash(self, cache: Path) -> str:
        """Return the SHA-256 over the names below `root` and the bytes of all files."""
        return _hash_files(self.name, self.root, self.paths, cache)

    def pieces(self, report: Report = _no_report) -> Iterator[Piece]:
        """Read all documents; `report(bytes)` is called with how much of `size()` has been read."""
        before = 0
        for path in self.paths:
            try:
                file = path.open("rb")
            except OSError as problem:
                raise DataError(f"{path} cannot be read: {problem.strerror}") from None
            with file:
                for piece in read_pieces(file, path, self.text_field):
                    report(before + file.tell())
                    yield piece
            before += path.stat().st_size


@dataclass(frozen=True)
class Hub:
    """One split of a Hugging Face data set, or of a folder in a format that the `datasets` library reads."""

    name: str
    configuration: str | None
    split: str
    text_field: str

    def size(self) -> None:
        """Return None: the size is unknown before the end."""

    def splits(self, cache: Path) -> list[str]:
        """Return the names of the splits; those of a remote data set are cached, so that data opens offline."""
        if self._folder.is_dir():
            return sorted(self._load())
        return remember(cache, ["splits", self.name, self.configuration], lambda: sorted(self._load()), NAMES)

    def content_hash(self, cache: Path) -> str:
        """Return the SHA-256 over configuration, split, and the files of a folder or the name of a remote data set.

        The content of a remote data set is not examined.
        """
        if not self._folder.is_dir():
            return value_hash(["hf", self.name, self.configuration, self.split])
        files = [path for path in sorted(self._folder.rglob("*")) if path.is_file()]
        content = _hash_files(self.name, self._folder, files, cache)
        return value_hash(["hf", content, self.configuration, self.split])

    def pieces(self, report: Report = _no_report) -> Iterator[Piece]:
        """Read all documents as they arrive; `report(characters)` is called with how much text has been read."""
        rows = iter(self._load()[self.split])
        number = characters = 0
        while (row := self._call(next, rows, None)) is not None:
            if self.text_field in row and row[self.text_field] is None:
                number += 1
                yield Piece("", ends_document=True, is_null=True)
                continue
            if not isinstance(text := row.get(self.text_field), str):
                raise DataError(
                    f"row {number} of the data set {quoted(self.name, 200)} holds no text in "
                    f"{quoted(self.text_field)}, only the columns {quoted(sorted(row))}; "
                    "set data.text_field to one that holds strings"
                )
            number += 1
            characters += len(text)
            report(characters)
            if text and not text.isspace():
                yield from split_document(text)

    @property
    def _folder(self) -> Path:
        return user_path(self.name)

    def _load(self) -> Any:
        try:
            from datasets import load_dataset
        except ImportError:
            raise MissingDependencyError("datasets", "hf", "an hf: source") from None
        name = str(self._folder) if self._folder.is_dir() else self.name
        return self._call(load_dataset, name, self.configuration, streaming=True)

    def _call(self, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        try:
            return function(*values, **options)
        except Exception as problem:  # any failure on the way to the hub becomes one message
            reason = (str(problem).strip().splitlines() or [""])[0]
            raise DataError(
                f"the data set {quoted(self.name, 200)} cannot be read ({type(problem).__name__}: "
                f"{cleaned(reason, 200)}); check its name and configuration ('hf:NAME:CONFIG') and the network"
            ) from None


@dataclass(frozen=True)
class Shards:
    """Token shards, in the order in which they are read."""

    name: str
    root: Path
    paths: tuple[Path, ...]

    def content_hash(self, cache: Path) -> str:
        """Return the SHA-256 over the names below `root` and the bytes of all files."""
        return _hash_files(self.name, self.root, self.paths, cache)


Source = Files | Hub | Shards


def locate(config: DataConfig, folder: Path) -> DataConfig:
    """Return `config` with its relative paths made absolute, relative to `folder`."""
    paths = {name: value for name in ("source", "val") if (value := getattr(config, name)) is not None}
    located = {name: _located_source(value, folder) for name, value in paths.items()}
    if config.tokenizer != "train":
        located["tokenizer"] = str(folder / user_path(config.tokenizer))
    if config.cache_dir is not None:
        located["cache_dir"] = str(folder / user_path(config.cache_dir))
    return DataConfig(**config.model_dump() | located)


def source_exists(source: str, folder: Path) -> bool:
    """Return whether `source` exists on this machine, relative to `folder`; True for a hub data set."""
    if source == "stdlib" or source.startswith("hf:"):
        return True
    path = _located_source(source, folder)
    return Path(path).exists() or any(glob.iglob(path, recursive=True))  # noqa: PTH207 (absolute patterns)


def _located_source(source: str, folder: Path) -> str:
    if source == "stdlib":
        return source
    if not source.startswith("hf:"):
        path = folder / user_path(source)
        if path.exists() or not glob.has_magic(source):
            return str(path)
        # A pattern: a `[` in the name of the folder is no part of it.
        return str(Path(glob.escape(str(folder))) / user_path(source))
    name, colon, configuration = source.removeprefix("hf:").partition(":")
    path = folder / user_path(name)
    return f"hf:{path}{colon}{configuration}" if name and path.is_dir() else source


def resolve(config: DataConfig, cache: Path) -> tuple[Source, Source | None]:
    """Return the training and the validation source; None for the latter where it must be held out of the former.

    Without `config.val`, the `*_val_*.bin` files beside `*_train_*.bin` files validate, and so does the `validation`
    split of a hub data set. Validation files never train: files that are in both sources are removed from the first.
    """
    train, own = _with_validation(_open(config.source, config.text_field), cache)
    if config.val is None:
        return train, own
    val, own = _with_validation(_open(config.val, config.text_field), cache)
    if own is not None:
        val = own
    if isinstance(train, Shards) != isinstance(val, Shards):
        raise DataError(
            f"data.source {quoted(config.source, 200)} and data.val {quoted(config.val, 200)} must both be text "
            f"or both be token shards"
        )
    return _without(train, val), val


def _open(source: str, text_field: str) -> Source:
    if source == "stdlib":
        return _standard_library()
    if source.startswith("hf:"):
        name, _, configuration = source.removeprefix("hf:").partition(":")
        if not name:
            raise DataError(f"the source {quoted(source, 200)} names no data set; write 'hf:NAME' or 'hf:NAME:CONFIG'")
        return Hub(name, configuration or None, "train", text_field)
    root, paths = _find(source)
    kinds = {file_kind(path) for path in paths}
    if kinds == {".bin"}:
        return Shards(source, root, paths)
    if ".bin" in kinds:
        raise DataError(
            f"{quoted(source, 200)} holds token shards (.bin) beside text; name one or the other, such as '*.bin'"
        )
    return Files(source, root, paths, text_field)


def _find(source: str) -> tuple[Path, tuple[Path, ...]]:
    """Return the readable files that `source` names, sorted, and their common folder."""
    path = user_path(source)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(
            f"{quoted(source, 200)} is neither a plain file nor a folder; write what it gives into a file first"
        )
    if path.is_file():
        found, root = [path], path.parent
    elif path.is_dir():
        # Hidden files are no part of a corpus: .git, .ipynb_checkpoints, our own temporary files.
        found = [file for file in path.rglob("*") if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        version = _prepared_version(path)
        if version is not None:
            found = [path / name for name in check_sealed(path, TOKENS_KIND, version).files]
        root = path
    elif glob.has_magic(source):
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (absolute patterns)
        root = Path(os.path.commonpath([file.parent for file in found])) if found else path
    else:
        raise DataError(
            f"{quoted(source, 200)} does not exist; a source is 'stdlib', a file, folder or glob, or 'hf:NAME'"
        )
    files = [file for file in found if file.is_file()]
    if not files:
        raise DataError(f"{quoted(source, 200)} holds no files; it must lead to {ALLOWED}")
    readable = sorted((file for file in files if file_kind(file)), key=lambda file: file.relative_to(root).as_posix())
    if not readable:
        raise DataError(
            f"{quoted(source, 200)} leads to no file that can be read, such as {quoted(files[0].name)}; "
            f"allowed: {ALLOWED}"
        )
    return root, tuple(readable)


def _prepared_version(folder: Path) -> Any:
    """Return the version of a cache entry, whose manifest says which files belong to it; None for any other folder.

    Entries of every version hold the same kind of shards.
    """
    try:
        manifest = read_json(folder / MANIFEST_NAME, DataError)
    except DataError:  # no manifest, or one of another program
        return None
    return manifest.get("version") if isinstance(manifest, dict) and manifest.get("kind") == TOKENS_KIND else None


def _standard_library() -> Files:
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix())
    paths = tuple(file for file in found if _is_library_source(file, root))
    source = Files("stdlib", root, paths, text_field="")
    if source.size() < _LEAST_STDLIB_BYTES:
        raise DataError(
            f"this Python comes with only {source.size()} bytes of library sources, too few to train on; "
            "set data.source to text of your own"
        )
    return source


def _is_library_source(path: Path, root: Path) -> bool:
    # Left out: _sysconfigdata_* differs between builds of Python, and encodings/ is tables of character names.
    if _NOT_STDLIB.intersection(path.relative_to(root).parts) or path.name.startswith("_sysconfigdata"):
        return False
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # a few are in Latin-1 on purpose
        return False
    return True


def _with_validation(source: Source, cache: Path) -> tuple[Source, Source | None]:
    """Split `source` into what trains and the part that is marked as validation."""
    if isinstance(source, Hub):
        names = source.splits(cache)
        if "train" not in names:
            raise DataError(f"the data set {quoted(source.name, 200)} has no split 'train', only {quoted(names)}")
        return source, replace(source, split="validation") if "validation" in names else None
    if isinstance(source, Shards):
        train = tuple(path for path in source.paths if "_train_" in path.name)
        val = tuple(path for path in source.paths if "_val_" in path.name)
        if train and val:
            return replace(source, paths=train), replace(source, paths=val)
    return source, None


def _without(train: Source, val: Source) -> Source:
    """Return `train` without the files of `val`."""
    if isinstance(train, Hub) or isinstance(val, Hub):
        if train == val:
            raise DataError(f"data.source and data.val are the same split of the data set {quoted(val.name, 200)}")
        return train
    held_out = {path.resolve() for path in val.paths}
    paths = tuple(path for path in train.paths if path.resolve() not in held_out)
    if not paths:
        raise DataError(
            f"every file of data.source is in data.val {quoted(val.name, 200)} too, so nothing is left to train on"
        )
    return replace(train, paths=paths)


def _hash_files(name: str, root: Path, paths: Sequence[Path], cache: Path) -> str:
    total = sum(path.stat().st_size for path in paths)
    digests = []
    done = 0
    with progress(f"checking {name}", total) if total > _SLOW_BYTES else nullcontext(_no_report) as update:
        for path in paths:
            digests.append([path.relative_to(root).as_posix(), file_digest(path, cache)])
            done += path.stat().st_size
            update(done)
    return value_hash(digests)
