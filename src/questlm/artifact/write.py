"""Write an artifact, a folder with a manifest or a single file, that is complete or absent."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from questlm.artifact.budget import Budget
from questlm.artifact.card import CARD_NAME, model_card
from questlm.artifact.for_transformers import KEYS, TOKENIZER_CONFIG_NAME, model_settings, tokenizer_settings
from questlm.artifact.format import (
    CONFIG_NAME,
    FORMAT,
    TENSORS_NAME,
    TOKENIZER_NAME,
    VERSION,
    ArtifactConfig,
    expected_tensors,
)
from questlm.artifact.read import Artifact, load_artifact
from questlm.artifact.single_file import write_single_file
from questlm.errors import ArtifactError, ConfigError
from questlm.files import atomic_file, atomic_folder, explain_failed_write
from questlm.json_files import canonical_json
from questlm.manifest import MANIFEST_NAME, write_manifest
from questlm.tokenizer_files import CHAT_TEMPLATE_NAME, parse_tokenizer

__all__ = ["PackReport", "write_artifact", "write_artifact_file"]


@dataclass(frozen=True)
class PackReport:
    """The result of packing.

    Attributes:
        path: of the artifact.
        bytes: size of all its files.
        bytes_by_part: of codes, steps, weights, embedding, head, norms, config, tokenizer, header and manifest (of a
            single file: checksum); they add up to `bytes`.
        parameters: all parameters of the model.
    """

    path: Path
    bytes: int
    bytes_by_part: dict[str, int]
    parameters: int

    @property
    def bf16_bytes(self) -> int:
        """Size of the weights alone in a BF16 checkpoint."""
        return 2 * self.parameters

    @property
    def bits_per_parameter(self) -> float:
        """Bits of the whole artifact per parameter, tokenizer included."""
        return 8 * self.bytes / self.parameters


def write_artifact(
    out: Path,
    config: ArtifactConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: str | None,
    check: Callable[[Artifact], None],
    budget: Budget | None = None,
    chat_template: str | None = None,
    license: str | None = None,
) -> PackReport:
    """Write the new folder `out`, read it back, and keep it unless `check` raises.

    Args:
        out: must not exist.
        config: shape and formats of the model.
        tensors: by name, contiguous and on the CPU, as `expected_tensors(config)` lists them.
        tokenizer: content of a tokenizer.json.
        check: called with the artifact that was read back.
        budget: checked before anything is kept.
        chat_template: content of a chat_template.jinja.
        license: name of the licence of the weights, for README.md, which is no part of the model: the manifest does not
            list it, and its bytes are not counted.

    Raises:
        ConfigError: `config.training` is not plain JSON, or the budget is missed.
        ArtifactError: the folder cannot be written.
    """
    files = {CONFIG_NAME: _config_bytes(config)}
    if tokenizer is not None:
        files[TOKENIZER_NAME] = tokenizer.encode()
        files[TOKENIZER_CONFIG_NAME] = canonical_json(tokenizer_settings(_end_of_text(tokenizer, config))).encode()
    if chat_template is not None:
        files[CHAT_TEMPLATE_NAME] = chat_template.encode()
    try:
        with atomic_folder(out) as folder:
            save_file(dict(tensors), folder / TENSORS_NAME)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            parts = _bytes_by_part(config, folder)
            write_manifest(folder, FORMAT, VERSION, {"bytes_by_part": parts, "parameters": config.model.parameters})
            parts["manifest"] = (folder / MANIFEST_NAME).stat().st_size
            if budget is not None:
                budget.check(parts)
            check(load_artifact(folder))
            card = model_card(config, sum(parts.values()), tokenizer is not None, license)
            (folder / CARD_NAME).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as problem:
        raise ArtifactError(
            f"cannot write the artifact {out}: {explain_failed_write(problem)}, or name another folder"
        ) from None
    return PackReport(out, sum(parts.values()), parts, config.model.parameters)


def write_artifact_file(
    out: Path,
    config: ArtifactConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: str | None,
    check: Callable[[Artifact], None],
    budget: Budget | None = None,
    chat_template: str | None = None,
) -> PackReport:
    """Write the single file `out`, with its codes entropy-coded, read it back, and keep it unless `check` raises.

    Arguments and errors are those of `write_artifact`; there is no README.md.
    """
    values = {key: value for key, value in json.loads(_config_bytes(config)).items() if key not in KEYS}
    if chat_template is not None:
        values["chat_template"] = chat_template
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            parts = write_single_file(file, values, tokenizer, expected_tensors(config), tensors)
            file.flush()
            if budget is not None:
                budget.check(parts)
            check(load_artifact(file.name))
    except OSError as problem:
        raise ArtifactError(
            f"cannot write the artifact {out}: {explain_failed_write(problem)}, or name another file"
        ) from None
    return PackReport(out, sum(parts.values()), parts, config.model.parameters)


def _config_bytes(config: ArtifactConfig) -> bytes:
    try:
        return canonical_json(config.model_dump(mode="python") | model_settings(config.model)).encode()
    except (RecursionError, TypeError, ValueError) as problem:
        raise ConfigError(f"training cannot be recorded, because it is not plain JSON: {problem}") from None


def _end_of_text(tokenizer: str, config: ArtifactConfig) -> str | None:
    if config.eos_token_id is None:
        return None
    token: str | None = parse_tokenizer(tokenizer, TOKENIZER_NAME, ArtifactError).id_to_token(config.eos_token_id)
    return token


def _bytes_by_part(config: ArtifactConfig, folder: Path) -> dict[str, int]:
    parts: Counter[str] = Counter()
    for spec in expected_tensors(config).values():
        parts[spec.part] += spec.bytes
    parts["header"] = (folder / TENSORS_NAME).stat().st_size - parts.total()
    for part, name in (
        ("config", CONFIG_NAME),
        ("tokenizer", TOKENIZER_NAME),
        ("tokenizer", TOKENIZER_CONFIG_NAME),
        ("tokenizer", CHAT_TEMPLATE_NAME),
    ):
        if (folder / name).exists():
            parts[part] += (folder / name).stat().st_size
    return dict(parts)
