"""Whole or absent: every way a write can go wrong leaves the old file."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from questlm import files
from questlm.errors import ArtifactError, ConfigError
from questlm.files import (
    atomic_folder,
    atomic_write,
    read_plain_file,
    remove_folder,
    remove_leftovers,
    sha256_files,
    user_path,
)
from questlm.json_files import read_json


def disk_full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "stored"), [("naïve\n", "naïve\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")]
)
def test_atomic_write_writes_and_replaces(tmp_path, content, stored):
    path = tmp_path / "a"
    path.write_text("old")
    atomic_write(path, content)
    assert path.read_bytes() == stored
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("broken", ["fsync", "replace", "touch"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failing_write_keeps_the_old_file_and_no_other(tmp_path, monkeypatch, broken, existing):
    path = tmp_path / "a"
    if existing:
        path.write_text("old")
    monkeypatch.setattr(os if broken == "fsync" else Path, broken, disk_full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    assert names(tmp_path) == (["a"] if existing else [])
    if existing:
        assert path.read_text() == "old"


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    def interrupt(_handle):
        raise KeyboardInterrupt

    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_new_files_and_folders_have_the_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", "x")
        with atomic_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750


def test_a_library_that_makes_private_files_does_not_decide_the_permissions(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "sub").mkdir()
            for name in ("b", "sub/c"):
                (folder / name).touch(mode=0o600)
    finally:
        os.umask(old)
    assert [(tmp_path / "a" / name).stat().st_mode & 0o777 for name in ("b", "sub/c")] == [0o644, 0o644]


def test_atomic_folder_appears_only_when_the_block_ends(tmp_path):
    path = tmp_path / "parent" / "made"
    with atomic_folder(path) as inside:
        (inside / "sub").mkdir()
        (inside / "sub" / "file").write_text("x")
        assert not path.exists()
    assert (path / "sub" / "file").read_text() == "x"
    assert names(path.parent) == ["made"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_folder_leaves_nothing_when_the_block_fails(tmp_path, error):
    with pytest.raises(error), atomic_folder(tmp_path / "made") as inside:
        (inside / "file").write_text("x")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_atomic_folder_leaves_nothing_when_the_disk_is_full(tmp_path, monkeypatch, broken):
    monkeypatch.setattr(os if broken == "fsync" else Path, broken, disk_full)
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "made") as inside:
        (inside / "file").write_text("x")
    assert names(tmp_path) == []


def test_atomic_folder_never_replaces_one_that_holds_something(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("x")
    with pytest.raises(OSError), atomic_folder(tmp_path / "made") as inside:
        (inside / "new").write_text("y")
    assert names(tmp_path) == ["made"]
    assert names(tmp_path / "made") == ["old"]


WRITER = """
import sys
from pathlib import Path
from questlm.files import atomic_file, atomic_folder
folder = Path(sys.argv[1])
with atomic_file(folder / "file") as file, atomic_folder(folder / "folder") as inside:
    (inside / "half").write_text("x")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """A process that is writing a file and a folder into `tmp_path`, until it is killed or its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process


def leftovers(folder: Path) -> list[str]:
    return [name for name in names(folder) if name.startswith(".tmp-")]


def test_what_another_process_is_writing_is_left_alone_and_arrives(tmp_path, writer):
    remove_leftovers(tmp_path)
    atomic_write(tmp_path / "other", "x")
    assert len(leftovers(tmp_path)) == 2
    writer.communicate("")
    assert names(tmp_path) == ["file", "folder", "other"]


@pytest.mark.parametrize("next_start", ["remove", "write", "folder"])
def test_what_a_killed_process_was_writing_is_removed_by_the_next_write(tmp_path, writer, next_start):
    (tmp_path / ".tmp-of-another-program").write_text("x")
    writer.kill()
    writer.wait()
    assert len(leftovers(tmp_path)) == 3
    if next_start == "remove":
        remove_leftovers(tmp_path)
    elif next_start == "write":
        atomic_write(tmp_path / "other", "x")
    else:
        with atomic_folder(tmp_path / "other"):
            pass
    assert leftovers(tmp_path) == [".tmp-of-another-program"]
    assert not {"file", "folder"} & set(names(tmp_path))


def test_a_temporary_file_that_vanishes_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """Another process may clear it away in the moment between the two."""
    lock, seen = files._lock, []

    def slow_lock(path):
        if not seen:
            seen.append(path)
            path.unlink()
        return lock(path)

    monkeypatch.setattr(files, "_lock", slow_lock)
    atomic_write(tmp_path / "a", "x")
    assert seen
    assert names(tmp_path) == ["a"]


def test_without_locks_only_a_folder_of_ones_own_is_cleared(tmp_path, monkeypatch):
    def no_locks(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    (tmp_path / f"{files._TEMPORARY_PREFIX}1").write_text("x")
    atomic_write(tmp_path / "a", "x")
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path, alone=True)
    assert names(tmp_path) == ["a"]


def test_a_folder_is_gone_from_its_name_at_once(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    monkeypatch.setattr("shutil.rmtree", lambda *_arguments, **_options: None)  # as if killed before it began
    remove_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_plain_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_plain_file(tmp_path / "a", 5, ArtifactError) == b"12345"
    with pytest.raises(ArtifactError, match="larger than 4 bytes"):
        read_plain_file(tmp_path / "a", 4, ArtifactError)
    with pytest.raises(ArtifactError, match="larger than 4 bytes"):
        read_json(tmp_path / "a", ArtifactError, limit=4)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
def test_a_pipe_or_device_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, error in itertools.product((tmp_path / "pipe", Path("/dev/zero")), (ArtifactError, ConfigError)):
        with pytest.raises(error) as caught:
            read_plain_file(path, 100, error)
        assert str(caught.value) == f"{path} cannot be read: it is not a plain file"


@pytest.mark.parametrize(
    ("name", "words"), [("none", "does not exist"), (".", "directory"), ("a\0b", "null"), ("a" * 5000, "too long")]
)
def test_a_path_that_is_no_file_is_refused_and_named(tmp_path, name, words):
    with pytest.raises(ArtifactError, match=f"{str(tmp_path)[:20]}.*{words}"):
        read_plain_file(tmp_path / name, 100, ArtifactError)


def test_a_path_may_begin_with_a_home_folder_and_need_not_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_path("~/text.txt") == Path("/home/someone/text.txt")
    assert user_path("~no.such-user/text.txt") == Path("~no.such-user/text.txt")


def test_the_hash_of_files_is_of_one_its_own_and_of_several_that_of_their_list(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert sha256_files([one]) == sha256(b"1").hexdigest()
    lines = f"{sha256(b'1').hexdigest()}  a\n{sha256(b'2').hexdigest()}  b\n"
    assert sha256_files([two, one]) == sha256(lines.encode()).hexdigest()
