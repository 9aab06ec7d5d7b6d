"""Files and folders that are whole or absent: atomic writes, locks, and reading what is certainly a plain file.

A reader must never meet a half-written file, whatever kills the writer. A single file is written beside its target
and renamed over it; a folder is filled under a temporary name and renamed into place. Every write first removes what
killed writers left beside its target. A writer locks its temporary file or folder, and the system drops the lock when
the writer's process ends, so what other processes are writing is never taken for a leftover.

Locks are `flock` on POSIX systems; elsewhere, and on file systems without it, nothing is locked. The package filelock
would not do: it locks files only, and temporary folders are locked here themselves; where there is no flock, it falls
back to a lock by existence, which outlives a killed process; and on Windows a run folder, whose lock is taken before
the folder gets its name, could not be renamed while a file in it is open.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from questlm.errors import QuestError

__all__ = [
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "explain_failed_write",
    "file_lock",
    "read_plain_file",
    "remove_folder",
    "remove_leftovers",
    "sha256_file",
    "sha256_files",
    "user_path",
]

_TEMPORARY_PREFIX = ".tmp-questlm-"  # no other program's, because `remove_leftovers` deletes by this name


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


def user_path(text: str) -> Path:
    """The path that a user or a settings file gives; `~` and `~name` stand for a home folder where there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """Hex SHA-256 of one file; of several, of the list of their hashes and names as `sha256sum` prints it."""
    digests = {path: sha256_file(path) for path in sorted(paths)}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digest}  {path.name}\n" for path, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


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
