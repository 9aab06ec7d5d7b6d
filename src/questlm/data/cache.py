"""The cache folder for prepared tokens, and for facts about files that take long to compute."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from questlm.config import DataConfig
from questlm.data.shards import largest_id
from questlm.errors import DataError
from questlm.files import sha256_file, user_path
from questlm.json_files import canonical_json, read_json, validated, write_json
from questlm.manifest import Manifest, read_manifest, verify_files

__all__ = [
    "COUNT",
    "FACTS",
    "HASH",
    "NAMES",
    "TOKENS_KIND",
    "TOKENS_VERSION",
    "cache_folder",
    "check_sealed",
    "file_digest",
    "largest_id_of",
    "remember",
    "value_hash",
]

T = TypeVar("T")

_Whole = Annotated[int, Field(strict=True, ge=-1, lt=2**63)]
COUNT = TypeAdapter(Annotated[int, Field(strict=True, ge=0, lt=2**63)])
HASH = TypeAdapter(Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")])
NAMES = TypeAdapter(list[Annotated[str, Field(strict=True)]])
_LARGEST_ID = TypeAdapter(tuple[_Whole, _Whole])

FACTS = "facts"
"""Folder in the cache for what `remember` keeps."""

TOKENS_KIND, TOKENS_VERSION = "questlm tokens", 2
"""Of the manifest of a folder with tokenised text."""
_SMALL_BYTES = 32 * 2**20  # read in a few hundredths of a second, so always read and never cached


def cache_folder(config: DataConfig) -> Path:
    """Return the cache folder: `data.cache_dir`, else `$QUESTLM_CACHE`, else `questlm` in the user's cache folder."""
    given = config.cache_dir or os.environ.get("QUESTLM_CACHE")
    if given:
        return user_path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "questlm"


def value_hash(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def remember(cache: Path, key: list[Any], compute: Callable[[], T], kind: TypeAdapter[T]) -> T:
    """Return the JSON value `compute()`, stored in `cache` under the JSON list `key` on the first call.

    A stored value that is not of the type `kind` is computed again.
    """
    path = cache / FACTS / f"{value_hash(key)}.json"
    with suppress(DataError):
        fact = read_json(path, DataError)
        if isinstance(fact, dict) and fact.get("key") == key and "value" in fact:
            return validated(kind, fact["value"], path, DataError)
    value = compute()
    with suppress(OSError):  # a cache that cannot be written costs time, not the run
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "value": value})
    return value


def file_digest(path: Path, cache: Path) -> str:
    """Return the hex SHA-256 of a file.

    That of a file above 32 MiB is stored in the cache until its size or modification time changes.
    """
    return _of_file("sha256", path, cache, lambda: sha256_file(path), HASH)


def largest_id_of(path: Path, cache: Path) -> tuple[int, int]:
    """Return `shards.largest_id` of a file, stored in the cache like `file_digest`."""
    return _of_file("largest id", path, cache, lambda: largest_id(path), _LARGEST_ID)


def _of_file(fact: str, path: Path, cache: Path, compute: Callable[[], T], kind: TypeAdapter[T]) -> T:
    status = path.stat()
    if status.st_size <= _SMALL_BYTES:
        return compute()
    return remember(cache, [fact, str(path.resolve()), status.st_size, status.st_mtime_ns], compute, kind)


def check_sealed(folder: Path, kind: str, version: int) -> Manifest:
    """Check a folder with a manifest like `manifest.verify`, but quickly for any size, and return its manifest.

    Checked are the manifest, every file's size, and the SHA-256 of files up to 32 MiB. A flipped bit inside a larger
    shard is not found: reading all of a 10 GB cache would delay every start by many seconds. Callers must read only the
    files that the manifest lists; anything else in the folder has an unknown origin.

    Raises:
        DataError: the folder is damaged, or is of another kind or version.
    """
    manifest = read_manifest(folder, kind, version, DataError)
    verify_files(folder, manifest, DataError, most_hashed=_SMALL_BYTES)
    return manifest
