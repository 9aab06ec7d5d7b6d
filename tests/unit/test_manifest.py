"""Sealed folders: every way a file can go wrong is met by one clear error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from questlm.errors import ArtifactError, CheckpointError
from questlm.files import sha256_file
from questlm.json_files import canonical_json
from questlm.manifest import MANIFEST_NAME, verify, write_manifest


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two files and their manifest."""
    path = tmp_path / "sealed"
    path.mkdir()
    (path / "weights.bin").write_bytes(bytes(range(6)))
    (path / "config.json").write_text("{}")
    write_manifest(path, "thing", 3, {"bytes": 8})
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


def test_a_sealed_folder_verifies_and_returns_its_details(folder):
    assert check(folder) == {"bytes": 8}
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    assert set(manifest["files"]) == {"weights.bin", "config.json"}
    assert manifest["files"]["weights.bin"] == {"bytes": 6, "sha256": sha256_file(folder / "weights.bin")}


def test_sealing_again_gives_the_same_bytes(folder):
    before = (folder / MANIFEST_NAME).read_bytes()
    write_manifest(folder, "thing", 3, {"bytes": 8})
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
    write_manifest(tmp_path, "k", 1)
    verify(tmp_path, "k", 1, ArtifactError)


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
