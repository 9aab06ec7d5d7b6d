"""Files that are whole or absent: atomic writes, and folders sealed with a manifest.

A reader must never meet a half-written file, whatever kills the writer. A single file is written beside its target
and renamed over it; a folder is filled under a temporary name and renamed into place. `seal` adds a `MANIFEST.json`
with the size and SHA-256 of every file and a digest of the manifest itself, so that `verify` finds any flipped bit,
in the manifest too, before a byte of the content is trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from questlm.errors import QuestError, quoted

__all__ = [
    "MANIFEST_NAME",
    "atomic_folder",
    "atomic_write",
    "canonical_json",
    "file_lock",
    "read_json",
    "read_plain_file",
    "remove_leftovers",
    "seal",
    "sha256_file",
    "verify",
    "write_json",
]

MANIFEST_NAME = "MANIFEST.json"
_TEMPORARY_PREFIX = ".tmp-"
_MAX_JSON_BYTES = 64 * 1024 * 1024
_MAX_MANIFEST_FILES = 10_000


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, two-space indent, finite numbers only, newline at the end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_plain_file(path: Path, limit: int, error: type[QuestError]) -> bytes:
    """The bytes of a plain file of at most `limit` bytes; any other file raises `error`.

    A pipe or device could be read without end, and opening a pipe would wait for its writer, so it is not waited for.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{path} cannot be read: it is not a plain file")
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except (OSError, ValueError) as problem:  # ValueError: a path that no file system has
        raise error(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if len(content) > limit:
        raise error(f"{path} is larger than {limit} bytes, the most that is read of such a file")
    return content


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_json(path: Path, error: type[QuestError], limit: int = _MAX_JSON_BYTES) -> Any:
    """Parse a JSON file; any fault (absent, above `limit` bytes, not UTF-8, not JSON, nested deeply) raises `error`."""
    content = read_plain_file(path, limit, error)
    try:
        return json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON ({type(problem).__name__}: {problem}); it is damaged") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {quoted(Counter(names).most_common(1)[0][0])} is there twice")
    return found


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` so that `path` holds either its old content or all of the new, even after a crash."""
    data = content.encode() if isinstance(content, str) else content
    try:
        _write_beside(path, data)
    except OSError as problem:  # by the name that was asked for, not that of the temporary file
        raise type(problem)(problem.errno, problem.strerror, str(path)) from None
    _sync_folder(path.parent)


def _write_beside(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY_PREFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as canonical JSON."""
    atomic_write(path, canonical_json(value))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well and vanishes when it does not.

    `path` itself must not exist yet; its parents are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_TEMPORARY_PREFIX}{path.name}-"))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync_file(file)
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def file_lock(lock: Path, taken: QuestError) -> Iterator[None]:
    """Hold the file `lock`, which is made, for this process, where the system can (POSIX).

    Raises:
        QuestError: `taken`, if another process holds it.
    """
    with lock.open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except BlockingIOError:
            raise taken from None
        yield


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left behind in `folder`. Call it only while nothing else writes there."""
    for item in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, kind: str, version: int, details: Mapping[str, Any] | None = None) -> None:
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


def verify(folder: Path, kind: str, version: int, error: type[QuestError], strict: bool = False) -> dict[str, Any]:
    """Check a sealed folder and return the manifest's `details`; raise `error` at the first thing that is off.

    Checked: the manifest's own digest and exact bytes, kind and version, that each listed name is a plain file name
    whose file really lies in the folder, and each file's size and SHA-256. `strict`: and nothing else is there.
    """
    if not folder.is_dir():
        raise error(f"{folder} is not a folder")
    path = folder / MANIFEST_NAME
    manifest = read_json(path, error)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise error(f"{path} is not a questlm manifest; it is damaged")
    if manifest.get("kind") != kind or manifest.get("version") != version:
        raise error(
            f"{folder} holds {manifest.get('kind')!r} version {manifest.get('version')!r}, "
            f"but this command reads {kind!r} version {version}"
        )
    digest = manifest.pop("digest", None)
    try:
        expected = hashlib.sha256(canonical_json(manifest).encode()).hexdigest()
        same_bytes = path.read_bytes() == canonical_json(manifest | {"digest": digest}).encode()
    except (ValueError, RecursionError):
        raise error(f"{path} holds a value that no manifest can; it is damaged") from None
    if digest != expected or not same_bytes:
        raise error(f"{path} does not match its own digest; it is damaged")
    if len(manifest["files"]) > _MAX_MANIFEST_FILES:
        raise error(f"{path} lists {len(manifest['files'])} files, more than any folder of ours has")
    for name, entry in manifest["files"].items():
        try:
            _verify_file(folder, name, entry, error)
        except (
            OSError,
            RuntimeError,
        ) as problem:  # too long a name, a link to itself, no permission
            raise error(f"{path} lists {name[:80]!r}, which cannot be read ({type(problem).__name__})") from None
    unlisted = [item.name for item in folder.iterdir() if item.name not in (*manifest["files"], MANIFEST_NAME)]
    if strict and unlisted:
        raise error(f"{folder / unlisted[0]} is not in the manifest; it does not belong there")
    details = manifest.get("details")
    return details if isinstance(details, dict) else {}


def _verify_file(folder: Path, name: str, entry: Any, error: type[QuestError]) -> None:
    if name != Path(name).name or name in {"", ".", ".."} or "\\" in name or "\0" in name:
        raise error(f"{folder / MANIFEST_NAME} names {name!r}, which lies outside the folder; refusing to read it")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise error(f"{path} is a link that leads outside its folder; refusing to read it")
    if not path.is_file():
        raise error(f"{path} is missing, though the manifest lists it")
    if not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes"):
        wanted = entry.get("bytes") if isinstance(entry, dict) else entry
        raise error(f"{path} is {path.stat().st_size} bytes long, but the manifest says {wanted}; it is damaged")
    if sha256_file(path) != entry.get("sha256"):
        raise error(f"{path} does not match its SHA-256 in the manifest; it is damaged")


def _umask() -> int:
    # mkstemp and mkdtemp make private files; what we publish gets the permissions any other program would give it.
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened for syncing
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
