"""A run folder: `config.yaml`, `origin.json`, `tokenizer.json`, `record.json`, `checkpoints/`, maybe a chat template.

While the run trains there is `progress.json` too (`questlm.records.RunProgress`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from questlm.config import DATA_PATHS, DataConfig, RunConfig, load_config
from questlm.errors import CheckpointError
from questlm.files import file_lock, remove_leftovers
from questlm.records import PROGRESS_NAME, RunRecord
from questlm.tokenizer_files import CHAT_TEMPLATE_NAME
from questlm.training.checkpoint import latest_checkpoint, verify_checkpoint
from questlm.training.origin import Origin, located
from questlm.training.same_settings import require_same_config

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: its paths, and what they hold."""

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
    def chat_template_file(self) -> Path:
        """The chat template that came with the tokenizer; absent where none did."""
        return self.path / CHAT_TEMPLATE_NAME

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

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
        """Lock the run for this process, where the system has file locks (POSIX).

        Raises:
            CheckpointError: another process is training in this folder.
        """
        taken = CheckpointError(f"another process is training in {self.path}; wait for it or stop it")
        with file_lock(self.path / ".lock", taken):
            yield

    def remove_leftovers(self) -> None:
        """Delete what killed processes left half-written or out of date. Only for a process that has locked the run."""
        remove_leftovers(self.path)  # where an artifact may be being packed meanwhile
        remove_leftovers(self.checkpoints, alone=True)
        with suppress(OSError):
            (self.path / PROGRESS_NAME).unlink(missing_ok=True)

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
        """Write `record.json`, unless that would replace one of a later step, which a resumed run has yet to reach."""
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
