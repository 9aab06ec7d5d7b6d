"""Whether a checkpoint or a run folder was made under the settings that are now given."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from questlm.config import COMPUTING_ONLY, RunConfig
from questlm.errors import CheckpointError, ConfigError, quoted

__all__ = ["require_same_config"]


def require_same_config(
    saved: dict[str, Any], config: RunConfig, source: Path, may_change: Collection[str] = ()
) -> None:
    """Refuse a checkpoint that was made under other settings.

    Args:
        may_change: names of settings that may differ, beside those that never decide what is learned.

    Raises:
        CheckpointError: naming the first setting that differs, and both values.
    """
    current = config.model_dump(mode="json")
    try:
        saved = RunConfig(**saved).model_dump(mode="json")  # settings that are newer than the run had their defaults
    except ConfigError as problem:
        raise CheckpointError(f"{source} was made with settings that this version does not know: {problem}") from None
    for section in sorted(set(saved) | set(current)):
        old, new = saved.get(section), current.get(section)
        if not isinstance(old, dict) or not isinstance(new, dict):
            old, new = {"": old}, {"": new}
        for key in sorted(set(old) | set(new)):
            name = f"{section}.{key}".rstrip(".")
            if old.get(key) != new.get(key) and name not in (*COMPUTING_ONLY, *may_change):
                raise CheckpointError(
                    f"{source} was made with {name} = {quoted(old.get(key), 200)}, "
                    f"but the settings now say {quoted(new.get(key), 200)}; "
                    f"resume with the same settings, or start a new run"
                )
