"""The JSON that every run writes, and that reports, fits and plans read. No torch.

A record says everything needed to repeat a run and to compare it: resolved settings, versions, data, device, curve,
final metrics. Numbers are measured, never computed from what was hoped for.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from questlm.errors import CheckpointError
from questlm.files import read_json, write_json

__all__ = ["RECORD_NAME", "RunRecord", "package_versions"]

RECORD_NAME = "record.json"
_FORMAT = 1
_NEWER = {"initial_weights", "processes", "parallel"}  # which the first records did not have


@dataclass
class RunRecord:
    """One training run.

    Attributes:
        config: resolved settings, as `RunConfig.model_dump(mode="json")`.
        versions: Python, packages and the git commit of the source, where there is one.
        device: name of the processor or GPU trained on, of the first process.
        data: description, hash, hash of the validation tokens, and sizes in tokens and bytes.
        parameters: {"all": ..., "non_embedding": ...}.
        curve: [{"step", "tokens", "loss", "lr", "grad_norm"}]; loss in nats a token, mean since the last entry.
        validations: [{"step", "tokens", "loss"}], on part of the validation split, during training.
        final: {"loss", "perplexity", "bits_per_byte", "tokens"}, on all of it, in float32, or None until the end.
        steps, tokens, seconds: trained so far; seconds of training loop, validations and checkpoints included.
        tokens_per_second: tokens / seconds spent in training steps alone.
        peak_memory_bytes: of the device (CUDA) or the process (CPU); of several, the most.
        checks: what the quantisation check at the start measured.
        initial_weights: SHA-256 of the weights that training began from (`init_from`), None for weights of its own.
        processes: how many trained it when the record was written.
        parallel: how they shared the model: 'none', 'ddp' or 'fsdp'.
    """

    config: dict[str, Any]
    versions: dict[str, str]
    device: str
    data: dict[str, Any]
    parameters: dict[str, int]
    curve: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)
    final: dict[str, float | None] | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    initial_weights: str | None = None
    processes: int = 1
    parallel: str = "none"
    format: int = _FORMAT

    def save(self, run: Path) -> None:
        """Write `record.json` into the run folder, atomically."""
        write_json(run / RECORD_NAME, asdict(self))

    @classmethod
    def load(cls, run: Path) -> RunRecord:
        """Read a run folder's record.

        Raises:
            CheckpointError: absent, damaged, or of another format.
        """
        content = read_json(run / RECORD_NAME, CheckpointError)
        names = {item.name for item in fields(cls)}
        lacking = names - set(content) if isinstance(content, dict) else names
        known = isinstance(content, dict) and content.get("format") == _FORMAT and set(content) <= names
        if not known or lacking - _NEWER:
            raise CheckpointError(f"{run / RECORD_NAME} is not a run record of format {_FORMAT}")
        return cls(**content)


@cache
def package_versions() -> dict[str, str]:
    """Versions of Python, the packages that decide results, and the git commit this source was checked out at."""
    versions = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in ("questlm", "torch", "numpy", "tokenizers", "safetensors"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    commit = _git_commit(Path(__file__).resolve().parents[2])
    if commit:
        versions["git"] = commit
    return versions


def _git_commit(folder: Path) -> str | None:
    if not (folder / ".git").exists():  # an installed package lies in no checkout of ours
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
