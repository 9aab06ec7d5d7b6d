"""Whole or absent, and sealed: every way a file can go wrong is met by one clear error."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from questlm import files
from questlm.errors import ArtifactError, CheckpointError, ConfigError
from questlm.files import (
    MANIFEST_NAME,
    atomic_folder,
    atomic_write,
    canonical_json,
    read_json,
    read_plain_file,
    remove_folder,
    remove_leftovers,
    seal,
    sha256_file,
    verify,
    write_json,
)


def disk_full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sealed folder of two files."""
    path = tmp_path / "sealed"
    path.mkdir()
    (path / "weights.bin").write_bytes(bytes(range(6)))
    (path / "config.json").write_text("{}")
    seal(path, "thing", 3, {"bytes": 8})
    return path


def check(folder: Path):
    return verify(folder, "thing", 3, ArtifactError)


def forge(folder: Path, **changes) -> None:
    """Change the manifest and its digest, as someone hostile would."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text()) | changes
    del manifest["digest"]
    manifest["digest"] = hashlib.sha256(canonical_json(manifest).encode()).hexdigest()
    (folder / MANIFEST_NAME).write_text(canonical_json(manifest))


def entry(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# --- atomic files and folders -------------------------------------------------------------------------------------


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


# --- JSON ---------------------------------------------------------------------------------------------------------


def test_canonical_json_is_one_spelling():
    assert canonical_json({"b": 1, "a": ["é"]}) == canonical_json({"a": ["é"], "b": 1})
    assert canonical_json({"b": 1, "a": ["é"]}) == '{\n  "a": [\n    "é"\n  ],\n  "b": 1\n}\n'


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_holds_finite_numbers_only_and_a_refused_value_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "a.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": number})
    assert read_json(path, CheckpointError) == {"loss": 1.5}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{'a': 1}", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 5_000, b"1" * 5_000], ids=range(7)
)
def test_bad_json_raises_the_callers_error_and_names_the_file(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json"):
        read_json(path, CheckpointError)


def test_json_that_is_absent_or_a_folder_raises_the_callers_error(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json(tmp_path / "none.json", CheckpointError)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path, CheckpointError)


# --- sealed folders -----------------------------------------------------------------------------------------------


def test_a_sealed_folder_verifies_and_returns_its_details(folder):
    assert check(folder) == {"bytes": 8}
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    assert set(manifest["files"]) == {"weights.bin", "config.json"}
    assert manifest["files"]["weights.bin"] == {"bytes": 6, "sha256": sha256_file(folder / "weights.bin")}


def test_sealing_again_gives_the_same_bytes(folder):
    before = (folder / MANIFEST_NAME).read_bytes()
    seal(folder, "thing", 3, {"bytes": 8})
    assert (folder / MANIFEST_NAME).read_bytes() == before


@pytest.mark.parametrize("name", ["weights.bin", "config.json", MANIFEST_NAME])
def test_any_flipped_bit_is_found(folder, name):
    original = (folder / name).read_bytes()
    unnoticed = []
    # Every bit of a small file; of each byte of the manifest the lowest, and the one that turns 'a' into 'A'.
    for bit in (b for b in range(8 * len(original)) if len(original) < 64 or b % 8 in (0, 5)):
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(damaged)
        try:
            check(folder)
        except ArtifactError:
            continue
        unnoticed.append(bit)
    assert unnoticed == []


@pytest.mark.parametrize("name", ["weights.bin", "config.json", MANIFEST_NAME])
def test_any_truncation_or_extension_is_found(folder, name):
    original = (folder / name).read_bytes()
    for changed in [original + b"\n", original + b"\0", *(original[:n] for n in range(len(original)))]:
        (folder / name).write_bytes(changed)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            check(folder)


@pytest.mark.parametrize("name", ["weights.bin", "config.json", MANIFEST_NAME])
def test_a_missing_file_is_found(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        check(folder)


def test_a_missing_folder_and_a_file_in_its_place_are_found(folder):
    for path in (folder / "none", folder / "config.json"):
        with pytest.raises(ArtifactError, match="not a folder"):
            check(path)


def test_swapped_files_are_found(folder):
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(ArtifactError, match="SHA-256"):
        check(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m | {"extra": 1},
        lambda m: m | {"details": m["details"] | {"extra": 1}},
        lambda m: m | {"files": m["files"] | {"extra": entry(b"")}},
        lambda m: m | {"files": {"config.json": m["files"]["config.json"]}},
        lambda m: m | {"digest": None},
        lambda m: {key: value for key, value in m.items() if key != "digest"},
    ],
    ids=["key", "detail", "file", "file-less", "null-digest", "no-digest"],
)
def test_an_edited_manifest_is_found(folder, change):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(canonical_json(change(manifest)))
    with pytest.raises(ArtifactError, match="digest"):
        check(folder)


def test_a_respelled_manifest_is_found(folder):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="digest"):
        check(folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_found(folder, number):
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text.replace('"bytes": 8', f'"bytes": {number}'))
    with pytest.raises(ArtifactError, match="damaged"):
        check(folder)


@pytest.mark.parametrize(("kind", "version"), [("other", 3), ("thing", 2), ("thing", 4)])
def test_another_kind_or_version_is_told_apart(folder, kind, version):
    with pytest.raises(ArtifactError, match=r"holds 'thing' version 3, but this command reads"):
        verify(folder, kind, version, ArtifactError)


@pytest.mark.parametrize("manifest", ["[]", "null", "1", '"x"', "{}", '{"files": []}', '{"files": null}'])
def test_json_that_is_no_manifest_is_refused(folder, manifest):
    (folder / MANIFEST_NAME).write_text(manifest)
    with pytest.raises(ArtifactError, match=MANIFEST_NAME):
        check(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "sub/file", "..", ".", "", "a\\b", "a\0b", "./config.json"], ids=repr
)
def test_names_that_lead_out_of_the_folder_are_refused(folder, name):
    (folder.parent / "secret").write_text("s")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("s")
    forge(folder, files={name: entry(b"s")})
    with pytest.raises(ArtifactError, match="outside the folder"):
        check(folder)


def test_a_link_out_of_the_folder_is_refused(folder):
    (folder.parent / "secret").write_bytes(bytes(range(6)))
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to(folder.parent / "secret")
    with pytest.raises(ArtifactError, match="link"):
        check(folder)


def test_a_folder_in_a_files_place_is_refused(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(ArtifactError, match=r"config\.json"):
        check(folder)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"bytes": 2}, {"bytes": "2", "sha256": "0"}], ids=repr)
def test_entries_of_another_shape_are_refused(folder, value):
    forge(folder, files={"config.json": value})
    with pytest.raises(ArtifactError, match=r"config\.json"):
        check(folder)


def test_more_files_than_any_folder_has_are_refused(folder):
    forge(folder, files={f"f{i}": entry(b"") for i in range(10_001)})
    with pytest.raises(ArtifactError, match="10001 files"):
        check(folder)


def test_the_error_is_the_callers():
    with pytest.raises(CheckpointError):
        verify(Path("no-such-folder"), "thing", 3, CheckpointError)


@pytest.mark.parametrize("name", ["a" * 300, "loop"])
def test_verify_refuses_names_the_system_cannot_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    manifest = {"kind": "k", "version": 1, "files": {name: {"bytes": 1, "sha256": ""}}, "details": {}}
    manifest["digest"] = hashlib.sha256(canonical_json(manifest).encode()).hexdigest()
    (tmp_path / "MANIFEST.json").write_text(canonical_json(manifest))
    with pytest.raises(ArtifactError, match=r"MANIFEST\.json|loop"):
        verify(tmp_path, "k", 1, ArtifactError)


def test_seal_leaves_subfolders_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "sub").mkdir()
    seal(tmp_path, "k", 1)
    verify(tmp_path, "k", 1, ArtifactError)


# --- reading what users hand over ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"details": None}, "details"),
        ({"details": [1]}, "details"),
        ({"files": {"config.json": {"bytes": True, "sha256": "0" * 64}}}, "bytes"),
        ({"files": {"config.json": {"bytes": 2.0, "sha256": "0" * 64}}}, "bytes"),
        ({"files": {"config.json": {"bytes": 2, "sha256": "\x1b[31m" + "x" * 5000}}}, "sha256"),
        ({"files": {"config.json": entry(b"{}") | {"more": 1}}}, "more"),
        ({"kind": None}, "None version 3"),
        ({"version": True}, "version True"),
        ({"version": 3.0}, "version"),
    ],
)
def test_values_of_other_types_under_a_right_digest_are_refused(folder, changes, expected):
    forge(folder, **changes)
    with pytest.raises(ArtifactError, match=expected) as caught:
        check(folder)
    assert len(str(caught.value)) < 400


def test_a_manifest_without_a_kind_is_refused(folder):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    del manifest["kind"], manifest["digest"]
    manifest["digest"] = hashlib.sha256(canonical_json(manifest).encode()).hexdigest()
    (folder / MANIFEST_NAME).write_text(canonical_json(manifest))
    with pytest.raises(ArtifactError, match="holds None version 3, but this command reads"):
        check(folder)


@pytest.mark.parametrize(("depth", "fine"), [(64, True), (65, False), (900, False), (100_000, False)])
def test_json_is_nested_64_deep_at_most(tmp_path, depth, fine):
    (tmp_path / "a.json").write_text("[" * depth + "]" * depth)
    if fine:
        read_json(tmp_path / "a.json", ArtifactError)
    else:
        with pytest.raises(ArtifactError, match=r"nested more than 64 deep|RecursionError"):
            read_json(tmp_path / "a.json", ArtifactError)
