"""Manifests: which files a folder has, with their sizes and hashes.

`write_manifest` adds a `MANIFEST.json` with the size and SHA-256 of every file and a digest of the manifest itself, so
that `verify` finds any flipped bit, in the manifest too, before a byte of the content is trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from questlm.errors import QuestError, quoted
from questlm.files import atomic_write, sha256_file
from questlm.json_files import canonical_json, read_json, validated

__all__ = [
    "MANIFEST_NAME",
    "Manifest",
    "read_manifest",
    "verify",
    "verify_files",
    "write_manifest",
]

MANIFEST_NAME = "MANIFEST.json"
_MAX_MANIFEST_FILES = 10_000


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """What a manifest says of one file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(_Strict):
    """The content of a `MANIFEST.json`.

    Attributes:
        kind, version: of the folder's format.
        files: each file of the folder, by name.
        details: further JSON, which depends on the kind.
        digest: SHA-256 of all the rest as canonical JSON.
    """

    kind: str
    version: int
    files: dict[str, FileEntry]
    details: dict[str, Any]
    digest: str


_MANIFEST = TypeAdapter(Manifest)


def write_manifest(folder: Path, kind: str, version: int, details: Mapping[str, Any] | None = None) -> None:
    """Write `MANIFEST.json` over every file in `folder` (not its subfolders).

    `kind` and `version` name the format; `details` is any further JSON to record, such as bytes by part.
    """
    files = {
        item.name: {"bytes": item.stat().st_size, "sha256": sha256_file(item)}
        for item in sorted(folder.iterdir())
        if item.is_file() and item.name != MANIFEST_NAME
    }
    manifest = {"kind": kind, "version": version, "files": files, "details": dict(details or {})}
    manifest["digest"] = hashlib.sha256(canonical_json(manifest).encode()).hexdigest()
    atomic_write(folder / MANIFEST_NAME, canonical_json(manifest))


def read_manifest(folder: Path, kind: str, version: int, error: type[QuestError]) -> Manifest:
    """Return the manifest of a folder, after checking its kind, version, exact bytes, digest and types.

    The files themselves are not looked at. Any fault raises `error`.
    """
    if not folder.is_dir():
        raise error(f"{folder} is not a folder")
    path = folder / MANIFEST_NAME
    content = read_json(path, error)
    if not isinstance(content, dict) or "digest" not in content:
        raise error(f"{path} does not hold a manifest of questlm with its digest; it is damaged")
    if content.get("kind") != kind or content.get("version") != version:
        raise error(
            f"{folder} holds {quoted(content.get('kind'))} version {quoted(content.get('version'))}, "
            f"but this command reads {kind!r} version {version}"
        )
    rest = {key: value for key, value in content.items() if key != "digest"}
    try:
        expected = hashlib.sha256(canonical_json(rest).encode()).hexdigest()
        same_bytes = path.read_bytes() == canonical_json(content).encode()
    except (ValueError, RecursionError):
        raise error(f"{path} holds a value that no manifest can; it is damaged") from None
    if content["digest"] != expected or not same_bytes:
        raise error(f"{path} does not match its own digest; it is damaged")
    manifest = validated(_MANIFEST, content, path, error)
    if len(manifest.files) > _MAX_MANIFEST_FILES:
        raise error(f"{path} lists {len(manifest.files)} files, more than any folder of ours has")
    return manifest


def verify(folder: Path, kind: str, version: int, error: type[QuestError], strict: bool = False) -> dict[str, Any]:
    """Check a folder against its manifest and return the `details` in it; raise `error` at the first difference.

    Checked: all that `read_manifest` checks, that each listed name is a plain file name whose file really lies in the
    folder, and each file's size and SHA-256. `strict`: and nothing else is there.
    """
    manifest = read_manifest(folder, kind, version, error)
    verify_files(folder, manifest, error)
    unlisted = [item.name for item in folder.iterdir() if item.name not in (*manifest.files, MANIFEST_NAME)]
    if strict and unlisted:
        raise error(f"{folder} holds {quoted(unlisted[0])}, which is not in its manifest and does not belong there")
    return manifest.details


def verify_files(folder: Path, manifest: Manifest, error: type[QuestError], most_hashed: int | None = None) -> None:
    """Check the files that `manifest` lists, and raise `error` at the first that is missing or differs.

    Args:
        most_hashed: of files above so many bytes, only the size is checked and not the SHA-256; None: of no file.
    """
    for name, entry in manifest.files.items():
        hashed = most_hashed is None or entry.bytes <= most_hashed
        try:
            _verify_file(folder, name, entry, error, hashed)
        except (OSError, RuntimeError) as problem:  # too long a name, a link to itself, no permission
            reason = type(problem).__name__
            raise error(f"{folder / MANIFEST_NAME} lists {quoted(name)}, which cannot be read ({reason})") from None


def _verify_file(folder: Path, name: str, entry: FileEntry, error: type[QuestError], hashed: bool) -> None:
    if name != Path(name).name or name in {"", ".", ".."} or "\\" in name or "\0" in name:
        path = folder / MANIFEST_NAME
        raise error(f"{path} names {quoted(name)}, which lies outside the folder; refusing to read it")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise error(f"{path} is a link that leads outside its folder; refusing to read it")
    if not path.is_file():
        raise error(f"{path} is missing, though the manifest lists it")
    if path.stat().st_size != entry.bytes:
        raise error(f"{path} is {path.stat().st_size} bytes long, but the manifest says {entry.bytes}; it is damaged")
    if hashed and sha256_file(path) != entry.sha256:
        raise error(f"{path} does not match its SHA-256 in the manifest; it is damaged")
