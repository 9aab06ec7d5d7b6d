"""`origin.json`: where a run was started and the hash of its data, so that it finds them from any working folder."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from questlm.config import DATA_PATHS, DataConfig, RunConfig
from questlm.data import locate, source_exists
from questlm.errors import CheckpointError
from questlm.files import user_path
from questlm.json_files import canonical_json, read_json

__all__ = ["ORIGIN_NAME", "Origin", "continued", "initial_located", "located"]

ORIGIN_NAME = "origin.json"


@dataclass(frozen=True)
class Origin:
    """What a run folder keeps in `origin.json`.

    Attributes:
        working_folder: absolute; relative paths in the run's settings are relative to it.
        from_run: the same, relative to the run folder: where to look first, for a project that was moved or copied
            together with its runs.
        data_hash: `PreparedData.data_hash` of the tokens; None in a run folder made before this file existed.
    """

    working_folder: str
    from_run: str
    data_hash: str | None

    @classmethod
    def here(cls, run: Path, data_hash: str | None) -> Origin:
        """The origin of a run started now in the folder `run`."""
        return cls(str(Path.cwd()), os.path.relpath(Path.cwd(), run), data_hash)

    @classmethod
    def read(cls, run: Path) -> Origin:
        """The origin of the run in the folder `run`; without the file, paths start from the working folder.

        Raises:
            CheckpointError: damaged.
        """
        file = run / ORIGIN_NAME
        if not file.exists():
            return cls.here(run, None)
        content = read_json(file, CheckpointError)
        names = set(cls.__dataclass_fields__)
        if not (
            isinstance(content, dict) and set(content) == names and all(isinstance(v, str) for v in content.values())
        ):
            raise CheckpointError(f"{file} does not say where its run was started; it is damaged, so remove it")
        return cls(**content)

    def to_json(self) -> str:
        """The file's content."""
        return canonical_json(asdict(self))

    def folder(self, run: Path, settings: RunConfig) -> Path:
        """The folder that relative paths in `settings` of the run in `run` are relative to."""
        moved = Path(os.path.normpath(Path.cwd() / run / self.from_run))
        named = [path for path in (settings.data.source, settings.data.val) if path is not None]
        return moved if all(source_exists(path, moved) for path in named) else Path(self.working_folder)


def located(data: DataConfig, folder: Path) -> DataConfig:
    """`data`, whose paths are relative to `folder`, with paths that lead there from the current working folder."""
    return data if folder == Path.cwd() else locate(data, folder)


def initial_located(config: RunConfig, folder: Path) -> RunConfig:
    """`config` with `init_from` as an absolute path."""
    return config.model_copy(update={"init_from": _absolute(config, folder)["init_from"]})


def continued(config: RunConfig, saved: RunConfig, folder: Path) -> RunConfig:
    """The settings `config` for resuming the run of the settings `saved`, with paths that work from any folder.

    A path that is spelt as in `saved`, or leads to the same place as that one from `folder`, stays as in `saved`. Any
    other path of data was given now, and is made absolute. Another `init_from` stays as given, and is refused later.
    """
    given, own = _paths(config), _paths(saved)
    now, then = _absolute(config, Path.cwd()), _absolute(saved, folder)
    same = {name for name in given if given[name] == own[name] or now[name] == then[name]}
    now["init_from"] = given["init_from"]
    if config.data.end_of_text is None:  # filled in from the files beside the tokenizer when the run began
        data = config.data.model_copy(update={"end_of_text": saved.data.end_of_text})
        config = config.model_copy(update={"data": data})
    return _with_paths(config, {name: own[name] if name in same else now[name] for name in given})


def _absolute(config: RunConfig, folder: Path) -> dict[str, str | None]:
    initial = None if config.init_from is None else str(folder / user_path(config.init_from))
    return _data_paths(locate(config.data, folder)) | {"init_from": initial}


def _paths(config: RunConfig) -> dict[str, str | None]:
    return _data_paths(config.data) | {"init_from": config.init_from}


def _data_paths(data: DataConfig) -> dict[str, str | None]:
    return {name: getattr(data, name.removeprefix("data.")) for name in (*DATA_PATHS, "data.cache_dir")}


def _with_paths(config: RunConfig, paths: dict[str, str | None]) -> RunConfig:
    data = {name.removeprefix("data."): path for name, path in paths.items() if name != "init_from"}
    changed = {"data": DataConfig(**config.data.model_dump() | data), "init_from": paths["init_from"]}
    return config.model_copy(update=changed)  # both are validated
