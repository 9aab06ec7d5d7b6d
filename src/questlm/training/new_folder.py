"""Making the folder of a new run, and removing that of a run that ends before its first checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from questlm.config import RunConfig, to_yaml
from questlm.errors import CheckpointError, ConfigError, QuestError, quoted
from questlm.files import atomic_folder, explain_failed_write, remove_folder
from questlm.records import PROGRESS_NAME, RECORD_NAME
from questlm.terminal import command_text
from questlm.tokenizer_files import CHAT_TEMPLATE_NAME
from questlm.training.origin import ORIGIN_NAME, Origin
from questlm.training.run_folder import RunFolder

__all__ = ["begin_folder", "require_free"]

_USUAL = frozenset(
    ("config.yaml", ORIGIN_NAME, "tokenizer.json", CHAT_TEMPLATE_NAME, "checkpoints", ".lock", PROGRESS_NAME)
)
_LOGS = frozenset(("tensorboard", "wandb"))
_OTHER = "name another folder with --out"


def require_free(folder: RunFolder) -> None:
    """Refuse a folder in which no new run can begin.

    An empty folder will do, and so will that of a run that ended before its first checkpoint, by a kill for example:
    nothing is lost with it.

    Raises:
        ConfigError: it holds something, or cannot be made.
        CheckpointError: another process is training there.
    """
    path = folder.path
    if path.is_symlink():
        raise ConfigError(f"{path} exists already and is a link; {_OTHER}")
    if not path.exists():
        _require_place(path)
        return
    if not path.is_dir():
        raise ConfigError(f"{path} exists already and is not a folder; {_OTHER}")
    present = sorted(item.name for item in path.iterdir())
    if present and not folder.config_file.is_file():
        raise ConfigError(f"the folder {path} exists already and holds {quoted(present[0])}; {_OTHER}")
    if present:
        with folder.locked():
            _require_nothing_saved(folder)


@contextmanager
def begin_folder(
    folder: RunFolder, config: RunConfig, tokenizer: str | None, origin: Origin, chat_template: str | None = None
) -> Iterator[None]:
    """Make the folder atomically, with what identifies the run, and lock it for this process.

    The folder of a run that ended before its first checkpoint is replaced. If the block raises a QuestError before the
    first checkpoint, the folder is removed, unless a logger has written there.

    Raises:
        ConfigError, CheckpointError: another process was quicker, or it cannot be written.
    """
    with ExitStack() as lock:
        try:
            _remove_unsaved(folder)
            with atomic_folder(folder.path) as temporary:
                draft = RunFolder(temporary)
                draft.checkpoints.mkdir()
                draft.config_file.write_text(to_yaml(config), encoding="utf-8")
                (temporary / ORIGIN_NAME).write_text(origin.to_json(), encoding="utf-8")
                if tokenizer is not None:
                    draft.tokenizer_file.write_text(tokenizer, encoding="utf-8")
                if chat_template is not None:
                    draft.chat_template_file.write_text(chat_template, encoding="utf-8", newline="")
                lock.enter_context(draft.locked())  # which stays locked under the folder's final name
        except OSError as problem:
            require_free(folder)  # says so if another process has made it meanwhile
            raise CheckpointError(
                f"cannot make the run folder {folder.path}: {explain_failed_write(problem)}, or {_OTHER}"
            ) from None
        try:
            yield
        except QuestError:
            if not _is_saved(folder) and not _unusual(folder):
                remove_folder(folder.path)
            raise


def _require_place(path: Path) -> None:
    """Refuse a path under something that is not a folder, before any work is done for it."""
    above = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), None)
    if above is not None and not above.is_dir():
        raise ConfigError(f"the run folder {path} cannot be made, because {above} is not a folder; {_OTHER}")


def _is_saved(folder: RunFolder) -> bool:
    """Whether training has saved anything there."""
    return (folder.path / RECORD_NAME).exists() or any(folder.checkpoints.glob("step-*"))


def _unusual(folder: RunFolder) -> set[str]:
    """Names of what is there beside the files that every run begins with."""
    return {item.name for item in folder.path.iterdir()} - _USUAL


def _require_nothing_saved(folder: RunFolder) -> None:
    """Refuse a locked folder with anything but what a run begins with; what killed processes left is deleted."""
    folder.remove_leftovers()
    if _is_saved(folder) or _unusual(folder) - _LOGS:
        raise ConfigError(
            f"the run folder {folder.path} exists already; continue that run with "
            f"`{command_text('train', '--resume', folder.path)}`, or {_OTHER}"
        )


def _remove_unsaved(folder: RunFolder) -> None:
    if folder.config_file.is_file():
        with folder.locked():
            _require_nothing_saved(folder)
            remove_folder(folder.path)
