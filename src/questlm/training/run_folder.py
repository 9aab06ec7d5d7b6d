"""A run folder: `config.yaml`, `origin.json`, `tokenizer.json`, `record.json` and `checkpoints/`.

While the run trains there is `progress.json` too (`questlm.records.RunProgress`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from questlm.config import DATA_PATHS, DataConfig, RunConfig, load_config, to_yaml
from questlm.errors import CheckpointError, ConfigError, QuestError, quoted
from questlm.files import atomic_folder, explain_failed_write, file_lock, remove_folder, remove_leftovers
from questlm.records import PROGRESS_NAME, RECORD_NAME, RunRecord
from questlm.terminal import command_text
from questlm.training.checkpoint import latest_checkpoint, verify_checkpoint
from questlm.training.origin import ORIGIN_NAME, Origin, located
from questlm.training.same_settings import require_same_config

__all__ = ["RunFolder"]

_BEGUN = frozenset(("config.yaml", ORIGIN_NAME, "tokenizer.json", "checkpoints", ".lock", PROGRESS_NAME))
_LOGS = frozenset(("tensorboard", "wandb"))


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Resolved settings."""
        return self.path / "config.yaml"

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer trained with; absent for token shards that came without one."""
        return self.path / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def require_free(self) -> None:
        """Refuse a folder in which no new run can begin.

        An empty folder will do, and so will that of a run that ended before its first checkpoint, by a kill for
        example: nothing is lost with it.

        Raises:
            ConfigError: it holds something, or cannot be made.
            CheckpointError: another process is training there.
        """
        if self.path.is_symlink():
            raise ConfigError(f"{self.path} exists already and is a link; name another folder with --out")
        if not self.path.exists():
            self._require_place()
            return
        if not self.path.is_dir():
            raise ConfigError(f"{self.path} exists already and is not a folder; name another folder with --out")
        present = sorted(item.name for item in self.path.iterdir())
        if present and not self.config_file.is_file():
            raise ConfigError(
                f"the folder {self.path} exists already and holds {quoted(present[0])}; name another folder with --out"
            )
        if present:
            with self.locked():
                self._require_nothing_saved()

    @contextmanager
    def begun(self, config: RunConfig, tokenizer: str | None, origin: Origin) -> Iterator[None]:
        """Make the folder, whole or not at all, with what identifies the run, and hold it for this process.

        The folder of a run that ended before its first checkpoint is replaced. If the block raises a QuestError before
        the first checkpoint, the folder is removed, unless a logger has written there.

        Raises:
            ConfigError, CheckpointError: another process was quicker, or it cannot be written.
        """
        with ExitStack() as lock:
            try:
                self._remove_unsaved()
                with atomic_folder(self.path) as temporary:
                    draft = RunFolder(temporary)
                    draft.checkpoints.mkdir()
                    draft.config_file.write_text(to_yaml(config), encoding="utf-8")
                    (temporary / ORIGIN_NAME).write_text(origin.to_json(), encoding="utf-8")
                    if tokenizer is not None:
                        draft.tokenizer_file.write_text(tokenizer, encoding="utf-8")
                    lock.enter_context(draft.locked())  # which holds under the folder's final name, too
            except OSError as problem:
                self.require_free()  # says so if another process has made it meanwhile
                raise CheckpointError(
                    f"cannot make the run folder {self.path}: {explain_failed_write(problem)}, "
                    f"or name another folder with --out"
                ) from None
            try:
                yield
            except QuestError:
                if not self._saved() and not self._unexpected():
                    remove_folder(self.path)
                raise

    def _require_place(self) -> None:
        """Refuse a path under something that is not a folder, before any work is done for it."""
        above = next((folder for folder in self.path.absolute().parents if os.path.lexists(folder)), None)
        if above is not None and not above.is_dir():
            raise ConfigError(
                f"the run folder {self.path} cannot be made, because {above} is not a folder; "
                f"name another folder with --out"
            )

    def _saved(self) -> bool:
        """Whether there is anything that training has given."""
        return (self.path / RECORD_NAME).exists() or any(self.checkpoints.glob("step-*"))

    def _unexpected(self) -> list[str]:
        """Names of what is there beside the files that every run begins with."""
        return sorted(item.name for item in self.path.iterdir() if item.name not in _BEGUN)

    def _require_nothing_saved(self) -> None:
        if self._saved() or set(self._unexpected()) - _LOGS:
            raise ConfigError(
                f"the run folder {self.path} exists already; continue that run with "
                f"`{command_text('train', '--resume', self.path)}`, or name another folder with --out"
            )

    def _remove_unsaved(self) -> None:
        if self.config_file.is_file():
            with self.locked():
                self._require_nothing_saved()
                remove_folder(self.path)

    def read_config(self) -> RunConfig:
        """The run's resolved settings.

        Raises:
            CheckpointError: this is not a run folder.
        """
        if not self.config_file.is_file():
            raise CheckpointError(f"{self.path} is not a run folder: it has no {self.config_file.name}")
        return load_config(file=self.config_file)

    def started_in(self, config: RunConfig) -> Path:
        """The folder that relative paths in `config`, the run's settings, are relative to."""
        return Origin.read(self.path).folder(self.path, config)

    def data_settings(self, other: str | None = None) -> DataConfig:
        """Settings by which to read the run's data, or the source `other`, with the run's own tokenizer.

        Raises:
            CheckpointError: this is not a run folder, or its origin is damaged.
        """
        config = self.read_config()
        if other is None:
            data = located(config.data, self.started_in(config))
        else:
            data = DataConfig(source=other, end_of_text=config.data.end_of_text)
        if not self.tokenizer_file.exists():
            return data
        # Not one trained again on what the source holds now.
        return DataConfig(**data.model_dump() | {"tokenizer": str(self.tokenizer_file)})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process, where the system can (POSIX).

        Raises:
            CheckpointError: another process is training in this folder.
        """
        taken = CheckpointError(f"another process is training in {self.path}; wait for it or stop it")
        with file_lock(self.path / ".lock", taken):
            yield

    def remove_leftovers(self) -> None:
        """Delete what killed processes left half-written, for a process that holds the run."""
        remove_leftovers(self.path)  # where an artifact may be being packed meanwhile
        remove_leftovers(self.checkpoints, alone=True)

    def is_finished(self) -> bool:
        """Whether the run has the final metrics of its newest checkpoint, which is verified.

        Raises:
            CheckpointError: the checkpoint is damaged or of other settings.
        """
        newest = latest_checkpoint(self.checkpoints)
        record = self._record()
        if newest is None or record is None or record.final is None:
            return False
        state = verify_checkpoint(newest)
        require_same_config(state.config, self.read_config(), newest, DATA_PATHS)
        return state.progress.step == record.steps

    def save_record(self, record: RunRecord) -> None:
        """Write `record.json`, unless the one that is there is richer: a resumed run has yet to come as far again."""
        old = self._record()
        if old is None or not record.is_poorer_than(old):
            record.save(self.path)

    def _record(self) -> RunRecord | None:
        """The run's record, if it has a usable one."""
        try:
            return RunRecord.load(self.path)
        except CheckpointError:
            return None

    def latest_checkpoint(self) -> Path:
        """The run's newest checkpoint.

        Raises:
            CheckpointError: it has none yet.
        """
        found = latest_checkpoint(self.checkpoints)
        if found is None:
            raise CheckpointError(f"the run {self.path} has no checkpoint yet")
        return found
