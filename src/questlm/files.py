"""Files that are whole or absent: atomic writes, and folders sealed with a manifest.

A reader must never meet a half-written file, whatever kills the writer. A single file is written beside its target
and renamed over it; a folder is filled under a temporary name and renamed into place. Every write first removes what
killed writers left beside its target. A writer locks its temporary file or folder, and the system drops the lock when
the writer's process ends, so what other processes are writing is never taken for a leftover.

Locks are `flock` on POSIX systems; elsewhere, and on file systems without it, nothing is locked. The package filelock
would not do: it locks files only, and temporary folders are locked here themselves; where there is no flock, it falls
back to a lock by existence, which outlives a killed process; and on Windows a run folder, whose lock is taken before
the folder gets its name, could not be renamed while a file in it is open.

`seal` adds a `MANIFEST.json` with the size and SHA-256 of every file and a digest of the manifest itself, so that
`verify` finds any flipped bit, in the manifest too, before a byte of the content is trusted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from questlm.errors import QuestError, quoted

__all__ = [
    "MANIFEST_NAME",
    "Manifest",
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "canonical_json",
    "check_safetensors_header",
    "explain_failed_write",
    "file_lock",
    "parse_json",
    "read_json",
    "read_manifest",
    "read_plain_file",
    "remove_folder",
    "remove_leftovers",
    "seal",
    "sha256_file",
    "validated",
    "verify",
    "verify_files",
    "write_json",
]

MANIFEST_NAME = "MANIFEST.json"
_TEMPORARY_PREFIX = ".tmp-questlm-"  # no other program's, because `remove_leftovers` deletes by this name
_MAX_JSON_BYTES = 64 * 1024 * 1024
_MAX_MANIFEST_FILES = 10_000
_MAX_HEADER_BYTES = 16 * 1024 * 1024  # of some 100,000 tensors
_DEEPEST_JSON = 64

T = TypeVar("T")


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


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, two-space indent, finite numbers only, newline at the end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_plain_file(path: Path, limit: int, error: type[QuestError]) -> bytes:
    """The bytes of a plain file of at most `limit` bytes; any other file raises `error`.

    A pipe or device could be read without end, and opening a pipe would wait for its writer, so it is not waited for.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            is_plain = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(limit + 1) if is_plain else b""
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except (OSError, ValueError) as problem:  # ValueError: a path that no file system has
        raise error(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if not is_plain:
        raise error(f"{path} cannot be read: it is not a plain file")
    if len(content) > limit:
        raise error(f"{path} is larger than {limit} bytes, the most that is read of such a file")
    return content


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_json(path: Path, error: type[QuestError], limit: int = _MAX_JSON_BYTES) -> Any:
    """Parse a JSON file; any fault (absent, above `limit` bytes, not UTF-8, not JSON, nested deeply) raises `error`."""
    return parse_json(read_plain_file(path, limit, error), str(path), error)


def parse_json(content: bytes, name: str, error: type[QuestError]) -> Any:
    """Parse JSON that holds no key twice; any fault raises `error`, which names the content by `name`."""
    try:
        value = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        raise error(f"{name} is not valid JSON ({type(problem).__name__}: {problem}); it is damaged") from None
    if _is_nested_beyond(_DEEPEST_JSON, value):
        raise error(f"{name} holds values nested more than {_DEEPEST_JSON} deep; it is damaged")
    return value


def check_safetensors_header(path: Path, error: type[QuestError]) -> None:
    """Refuse a safetensors file whose header is larger than 16 MiB or names a tensor twice, before it is opened.

    The library would read 100 MB, and takes the last of two tensors of one name.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > path.stat().st_size:
            return  # it is cut or no such file, which the library says
        if length > _MAX_HEADER_BYTES:
            raise error(f"{path} has a header of {length} bytes, but at most {_MAX_HEADER_BYTES} are allowed")
        parse_json(file.read(length), f"the header of {path}", error)


def _is_nested_beyond(depth: int, value: Any) -> bool:
    # Not recursive: some versions of Python parse what is nested thousands deep, and recursive readers then fail.
    level = [value]
    for _ in range(depth):
        level = [
            item
            for outer in level
            if isinstance(outer, list | dict)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {quoted(Counter(names).most_common(1)[0][0])} is there twice")
    return found


def validated(adapter: TypeAdapter[T], content: Any, path: Path, error: type[QuestError]) -> T:
    """The JSON value `content` of the file `path` as `adapter` checks and converts it; a misfit raises `error`."""
    try:
        return adapter.validate_python(content)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "its content"
    place = quoted(place)[1:-1]
    if first["type"] == "missing":
        raise error(f"{path} lacks {place}; it is damaged")
    reason = first["msg"].removeprefix("Value error, ")
    raise error(f"{path} has {place} = {quoted(first['input'])} ({reason[0].lower()}{reason[1:]}); it is damaged")


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` so that `path` holds either its old content or all of the new, even after a crash."""
    try:
        with atomic_file(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as problem:  # by the name that was asked for, not that of the temporary file
        raise type(problem)(problem.errno, problem.strerror, str(path)) from None


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file to write, which becomes `path` when the block ends well and vanishes when it does not."""
    temporary, lock = _make_temporary(path.parent, _make_file)
    try:
        with temporary.open("r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        _unlock(lock)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as canonical JSON."""
    atomic_write(path, canonical_json(value))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well and vanishes when it does not.

    `path` itself must not exist yet, or be an empty folder; its parents are made. Its files get the permissions that
    the umask gives to new files, whatever the library that wrote them chose.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _make_temporary(path.parent, Path.mkdir)
    try:
        yield temporary
        permissions = temporary.stat().st_mode & 0o666
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(permissions)
                _sync_file(file)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        _unlock(lock)
    _sync_folder(path.parent)


def explain_failed_write(problem: Exception) -> str:
    """The reason why a file or folder could not be written, by the system or a library, and what helps."""
    if not isinstance(problem, OSError):  # of a library, which gives no number; most of its failures are a full disk
        return f"{problem}; free some space there"
    reason = problem.strerror or str(problem)
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{reason}; free some space there"
    if problem.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return "another process has made it meanwhile; wait for that one"
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{reason}; allow writing there"
    return f"{reason}; correct the path"


@contextmanager
def file_lock(lock: Path, taken: QuestError) -> Iterator[None]:
    """Hold the file `lock`, which is made, for this process, where the system can.

    Raises:
        QuestError: `taken`, if another process holds it.
    """
    lock.touch()
    try:
        handle = _lock(lock)
    except BlockingIOError:
        raise taken from None
    try:
        yield
    finally:
        _unlock(handle)


def remove_leftovers(folder: Path, alone: bool = False) -> None:
    """Delete the temporary files and folders in `folder` whose writers have ended, killed for example.

    What cannot be told, on a file system without locks, is kept; `alone`: the caller knows that nothing else writes
    in `folder`, and all temporary files and folders there are deleted.
    """
    with suppress(OSError):
        for item in folder.glob(f"{_TEMPORARY_PREFIX}*"):
            with suppress(OSError):  # locked, because its writer lives; or gone meanwhile
                handle = _lock(item)
                if alone or handle is not None:
                    _remove(item)
                _unlock(handle)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a kill half-way leaves no damaged folder under its name."""
    doomed = folder.rename(_temporary_name(folder.parent))
    shutil.rmtree(doomed, ignore_errors=True)


def _remove(item: Path) -> None:
    if item.is_dir():
        shutil.rmtree(item, ignore_errors=True)
    else:
        item.unlink(missing_ok=True)


def _temporary_name(folder: Path) -> Path:
    return folder / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}"


def _make_file(path: Path) -> None:
    path.touch(exist_ok=False)  # with the permissions that the umask gives; `tempfile` would make a private file


def _make_temporary(folder: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """Make a temporary file or folder in `folder`; its path, and its lock to be given to `_unlock`."""
    remove_leftovers(folder)
    while True:
        path = _temporary_name(folder)
        make(path)
        # Another process may take what is not locked yet for a leftover. Once it is locked, it stays.
        with suppress(BlockingIOError, FileNotFoundError):
            return path, _lock(path)


def _lock(path: Path) -> int | None:
    """Lock a file or folder for this process; a handle that holds the lock, or None where the system has no such locks.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: it is not there, or was removed or replaced before the lock was taken.
        OSError: it cannot be opened.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        os.close(handle)
        if isinstance(problem, BlockingIOError):
            raise
        return None
    try:
        if os.path.samestat(os.fstat(handle), os.lstat(path)):
            return handle
    except FileNotFoundError:
        pass
    os.close(handle)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


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


def read_manifest(folder: Path, kind: str, version: int, error: type[QuestError]) -> Manifest:
    """The manifest of a sealed folder, after checking its kind, version, exact bytes, digest and types.

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
    """Check a sealed folder and return the manifest's `details`; raise `error` at the first thing that is off.

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
    """Check the files that a manifest lists as `verify` does; of files above `most_hashed` bytes, only the size."""
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
