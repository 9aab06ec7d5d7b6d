"""A folder that is changed and put back for every input, and sealing it again after a change."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

from questlm.json_files import canonical_json
from questlm.manifest import MANIFEST_NAME

__all__ = ["Folder", "rewrite_manifest"]


class Folder:
    """A copy of the sample folder `whole`; `restore` undoes whatever was done to it since."""

    def __init__(self, whole: Path, scratch: Path) -> None:
        self.path = scratch
        shutil.copytree(whole, scratch, dirs_exist_ok=True)
        self.files = {str(p.relative_to(whole)): p.read_bytes() for p in sorted(whole.rglob("*")) if p.is_file()}
        self._folders = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_dir()}
        self._changed: set[str] = set()

    def write(self, name: str, content: bytes) -> None:
        """Give a file another content."""
        self._changed.add(name)
        (self.path / name).write_bytes(content)

    def displace(self, draw: random.Random, name: str) -> str:
        """Do to a file what a file system can: it is away, empty, a folder, a link, a pipe; or has a double."""
        path = self.path / name
        self._changed.add(name)
        action = draw.choice(("remove", "empty", "folder", "loop", "device", "outside", "pipe", "double", "exchange"))
        other = self.path / draw.choice(sorted(self.files))
        if action == "double":
            (path.parent / f"{path.stem} (conflicted copy){path.suffix}").write_bytes(self.files[name])
            return f"double of {name}"
        if action == "exchange":
            self._changed.add(str(other.relative_to(self.path)))
            content = other.read_bytes()
            other.write_bytes(self.files[name])
            path.write_bytes(content)
            return f"exchange of {name} and {other.name}"
        path.unlink()
        if action == "empty":
            path.touch()
        elif action == "folder":
            path.mkdir()
        elif action == "loop":
            path.symlink_to(path.name)
        elif action == "device":
            path.symlink_to("/dev/zero")
        elif action == "outside":
            target = self.path.parent / "outside"
            target.write_bytes(self.files[name])
            path.symlink_to(target)
        elif action == "pipe":
            os.mkfifo(path)
        return f"{action} instead of {name}"

    def restore(self) -> None:
        """The folder as it was at first."""
        there = {str(p.relative_to(self.path)): p for p in self.path.rglob("*")}
        for name, path in there.items():
            wrong_kind = name in self.files and (path.is_symlink() or not path.is_file())
            if wrong_kind or name not in self.files.keys() | self._folders:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        for name in self._folders - there.keys():
            (self.path / name).mkdir(parents=True, exist_ok=True)
        for name in self._changed | {name for name in self.files if not (self.path / name).is_file()}:
            if name in self.files:
                (self.path / name).write_bytes(self.files[name])
        self._changed.clear()


def rewrite_manifest(folder: Path) -> None:
    """Write a manifest of the folder as it is now. As `questlm.manifest.write_manifest`, but without syncing."""
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    del manifest["digest"]
    for name in manifest["files"]:
        file = folder / name
        if file.is_file() and not str(file.resolve()).startswith("/dev/"):
            data = file.read_bytes()
            manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, object]) -> None:
    """Write a manifest with the digest that belongs to it."""
    text = canonical_json(manifest)
    (folder / MANIFEST_NAME).write_text(
        canonical_json(manifest | {"digest": hashlib.sha256(text.encode()).hexdigest()}), encoding="utf-8"
    )
