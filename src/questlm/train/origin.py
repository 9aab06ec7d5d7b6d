"""Where a run was started and what its data were, so that it finds the data again from any working folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from questlm.config import DataConfig, RunConfig
from questlm.data import locate
from questlm.errors import CheckpointError
from questlm.files import canonical_json, read_json

__all__ = ["DATA_PATHS", "Origin"]

DATA_PATHS = ("data.source", "data.val", "data.tokenizer")
"""Settings that say where data lie. They may change when a run is resumed, because the data's hash is compared."""


@dataclass(frozen=True)
class Origin:
    """What a run folder keeps in `origin.json`.

    Attributes:
        working_folder: absolute; relative paths in the run's settings are relative to it.
        data_hash: `PreparedData.data_hash` of the tokens; None in a run folder made before this file existed.
    """

    working_folder: str
    data_hash: str | None

    @classmethod
    def here(cls, data_hash: str | None) -> Origin:
        """That of a run started now."""
        return cls(str(Path.cwd()), data_hash)

    @classmethod
    def read(cls, file: Path) -> Origin:
        """Read an `origin.json`; where there is none, paths are relative to the working folder of now.

        Raises:
            CheckpointError: damaged.
        """
        if not file.exists():
            return cls.here(None)
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

    def locate_data(self, data: DataConfig) -> DataConfig:
        """`data` for reading it from the present working folder. Unchanged where the run was started here."""
        folder = Path(self.working_folder)
        return data if folder == Path.cwd() else locate(data, folder)

    def locate_initial(self, config: RunConfig) -> RunConfig:
        """`config` with `init_from` as an absolute path."""
        return config.model_copy(update={"init_from": self._absolute(config)["init_from"]})

    def settings(self, config: RunConfig, saved: RunConfig) -> RunConfig:
        """`config`, by which the run of `saved` is to go on, with paths that do not depend on the working folder.

        A path that is spelt as in `saved`, or leads to the same place, stays as it is there. Any other was given now,
        so it is made absolute.
        """
        given, own = _paths(config), _paths(saved)
        now, then = Origin.here(None)._absolute(config), self._absolute(saved)
        same = {name for name in given if given[name] == own[name] or now[name] == then[name]}
        return _with_paths(config, {name: own[name] if name in same else now[name] for name in given})

    def _absolute(self, config: RunConfig) -> dict[str, str | None]:
        folder = Path(self.working_folder)
        initial = None if config.init_from is None else str(folder / Path(config.init_from).expanduser())
        return _paths(config) | _data_paths(locate(config.data, folder)) | {"init_from": initial}


def _paths(config: RunConfig) -> dict[str, str | None]:
    return _data_paths(config.data) | {"init_from": config.init_from}


def _data_paths(data: DataConfig) -> dict[str, str | None]:
    return {name: getattr(data, name.removeprefix("data.")) for name in (*DATA_PATHS, "data.cache_dir")}


def _with_paths(config: RunConfig, paths: dict[str, str | None]) -> RunConfig:
    data = {name.removeprefix("data."): path for name, path in paths.items() if name != "init_from"}
    changed = {"data": DataConfig(**config.data.model_dump() | data), "init_from": paths["init_from"]}
    return config.model_copy(update=changed)  # both are validated
