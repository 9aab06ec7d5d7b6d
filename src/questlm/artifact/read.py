"""Read an artifact that may be damaged or hostile.

Checks run in this order, each before the next file is examined: the manifest, the size of every file, and the SHA-256
of all but model.safetensors; config.json; the tokenizer; then names, shapes and dtypes in the header of
model.safetensors, against those that the config implies. Only then are tensors read, so a config alone cannot make us
allocate memory. Codes must lie on their grid and floats be finite. The SHA-256 of model.safetensors is computed in a
thread beside all this, and nothing is believed before it is right. Any fault is an ArtifactError.
docs/concepts/artifact.md states every bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from questlm.artifact.for_transformers import KEYS, model_settings
from questlm.artifact.format import (
    CONFIG_NAME,
    FORMAT,
    TENSORS_NAME,
    TOKENIZER_NAME,
    VERSION,
    ArtifactConfig,
    expected_tensors,
)
from questlm.artifact.single_file import open_single_file
from questlm.artifact.tensors import StoredTensors, check_tensor
from questlm.errors import ArtifactError, quoted
from questlm.json_files import parse_json, read_json
from questlm.manifest import MANIFEST_NAME, Manifest, read_manifest, verify_files
from questlm.memory import host_memory, require_memory
from questlm.ops.reference.storage import from_int8_rows
from questlm.terminal import command_text
from questlm.tokenizer_files import (
    CHAT_TEMPLATE_NAME,
    MAX_TOKENIZER_BYTES,
    parse_tokenizer,
    read_chat_template,
    read_tokenizer_text,
    usual_end_of_text,
)

__all__ = ["Artifact", "load_artifact", "open_artifact", "read_fetched", "require_known_ids"]

_MAX_CONFIG_BYTES = 4 * 2**20
_MAX_CONFIG_VALUES = 50_000  # `training` left out; pydantic takes 2 kB for each value that is wrong
_MAX_MESSAGE = 300
_MEMORY_OVER_FILE = 1.1  # its tensors, or their layout for native kernels; layers that take more ask for it themselves


@dataclass(frozen=True)
class Artifact:
    """A packed model, in memory or in its file.

    Attributes:
        config: shape, formats and provenance.
        tensors: by name, as `questlm.artifact.format` lists them, on the CPU; where `open_artifact` gave it, read anew
            at each look-up.
        tokenizer: with truncation and padding off, or None.
        tokenizer_json: the content of its file, unchanged.
        chat_template: a template of jinja2 for the messages of a chat, as transformers renders it, or None. A program
            of a stranger: render it in a sandbox only.
        details: what the manifest records beside hashes: bytes by part.
        bytes: size of all its files.
    """

    config: ArtifactConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer | None
    tokenizer_json: str | None
    details: dict[str, Any]
    bytes: int
    chat_template: str | None = None

    @property
    def end_of_text(self) -> int | None:
        """Id of the token that ends a document, or None where neither config nor tokenizer has one."""
        if self.config.eos_token_id is not None or self.tokenizer is None:
            return self.config.eos_token_id
        return usual_end_of_text(self.tokenizer)

    def stored_weight(self, name: str) -> Tensor:
        """Return a matrix that is stored as float32, bf16 or int8, (out, in), as float32."""
        if f"{name}.scale" in self.tensors:
            return from_int8_rows(self.tensors[f"{name}.codes"], self.tensors[f"{name}.scale"])
        return self.tensors[f"{name}.weight"].to(torch.float32)


def load_artifact(path: str | Path) -> Artifact:
    """Check and read the artifact `path`, a folder or a single file.

    Raises:
        ArtifactError: it is missing, damaged, hostile, or of another format or version.
    """
    with open_artifact(path) as artifact:
        return replace(artifact, tensors=dict(artifact.tensors))


@contextmanager
def open_artifact(path: str | Path) -> Iterator[Artifact]:
    """Within it, the artifact `path`; tensors of a folder are read and checked one by one as they are used.

    Meanwhile a thread computes the SHA-256 of model.safetensors, and the block ends when that is known. Use what was
    made of the tensors only behind a block that has ended without an error; to lay them out in memory before is safe.
    A single file is read and checked as a whole, at the beginning.

    Raises:
        ArtifactError: as `load_artifact`, at the beginning, at a look-up, or at the end of the block.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        with _library_errors(path):
            whole = _load_file(path)
        yield whole
        return
    with _library_errors(path):
        manifest = _read_manifest(path)
    with _hashed(path, manifest):
        with _library_errors(path):
            artifact, tensors = _open(path, manifest)
        with tensors:
            yield artifact


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Within it, whatever a library finds wrong is an ArtifactError."""
    try:
        yield
    except (ArithmeticError, OSError, RuntimeError, ValueError, SafetensorError) as problem:
        raise ArtifactError(f"{path} is not a usable artifact: {_brief(problem)}") from None


def read_fetched(config: ArtifactConfig, files: Sequence[Path]) -> Artifact:
    """Read an artifact that another library has fetched as a config and files of weights, without its manifest.

    Everything is checked as in `load_artifact`, except hashes. It has no tokenizer.

    Raises:
        ArtifactError: the files do not hold what the config says.
    """
    with _library_errors(files[0].parent), StoredTensors(files, config) as tensors:
        return Artifact(config, dict(tensors), None, None, {}, sum(path.stat().st_size for path in files))


@contextmanager
def _hashed(folder: Path, manifest: Manifest) -> Iterator[None]:
    """Within it, a thread checks the SHA-256 of all files; damage that it finds is the error, whatever it led to."""
    with ThreadPoolExecutor(1, "questlm-hash") as pool:
        hashing = pool.submit(verify_files, folder, manifest, ArtifactError)
        try:
            yield
        except Exception:  # whatever damaged bytes led to: the damage is the reason to tell
            if (damage := hashing.exception()) is not None:
                raise damage from None
            raise
        hashing.result()


def require_known_ids(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer with ids outside the vocabulary of a model.

    Raises:
        ArtifactError: its largest id is not below `vocab_size`.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise ArtifactError(
            f"{TOKENIZER_NAME} has the id {largest}, but the model's vocabulary has {vocab_size} entries"
        )


def _read_manifest(folder: Path) -> Manifest:
    """The manifest, behind the check of all files but the content of model.safetensors."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder or file; give the folder or the single file of a packed model")
    if (folder / "config.yaml").exists() and not (folder / MANIFEST_NAME).exists():
        raise ArtifactError(
            f"{folder} is a run folder, not an artifact; pack it first: "
            f"{command_text('pack', folder, '--out', folder / 'packed')}"
        )
    _refuse_oversized(folder / MANIFEST_NAME, _MAX_CONFIG_BYTES)
    manifest = read_manifest(folder, FORMAT, VERSION, ArtifactError)
    tensors = {name: entry for name, entry in manifest.files.items() if name == TENSORS_NAME}
    others = {name: entry for name, entry in manifest.files.items() if name != TENSORS_NAME}
    verify_files(folder, manifest.model_copy(update={"files": others}), ArtifactError)
    verify_files(folder, manifest.model_copy(update={"files": tensors}), ArtifactError, most_hashed=0)
    for name in (CONFIG_NAME, TENSORS_NAME):
        if name not in manifest.files:
            raise ArtifactError(f"{folder} has no {name} in its manifest; it is not complete")
    return manifest


def _open(folder: Path, manifest: Manifest) -> tuple[Artifact, StoredTensors]:
    config = _read_config(folder / CONFIG_NAME)
    # A tokenizer.json that the manifest does not list has not been verified, so it is not read.
    listed = TOKENIZER_NAME in manifest.files
    text = read_tokenizer_text(folder / TOKENIZER_NAME, ArtifactError) if listed else None
    listed = CHAT_TEMPLATE_NAME in manifest.files
    template = read_chat_template(folder / CHAT_TEMPLATE_NAME, ArtifactError) if listed else None
    size = sum((folder / name).stat().st_size for name in (MANIFEST_NAME, *manifest.files))
    artifact = _artifact(config, {}, text, str(folder / TOKENIZER_NAME), manifest.details, size, template)
    needed = _MEMORY_OVER_FILE * manifest.files[TENSORS_NAME].bytes
    require_memory(needed, host_memory(), f"the packed model {folder}", "use a machine that has more memory")
    tensors = StoredTensors([folder / TENSORS_NAME], config)
    return replace(artifact, tensors=tensors), tensors


def _load_file(path: Path) -> Artifact:
    with open_single_file(path, (_MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES)) as file:
        name = f"the config in {path}"
        values = parse_json(file.config.encode(), name, ArtifactError)
        template = values.pop("chat_template", None) if isinstance(values, dict) else None
        if not isinstance(template, str | None):
            raise ArtifactError(f"{name} has a chat_template that is no string; the file is damaged")
        config = _parsed_config(values, name)
        try:
            tensors, parts = file.tensors(expected_tensors(config))
        except ArtifactError as problem:
            raise ArtifactError(f"{path} is damaged: {problem}") from None
        for each, tensor in tensors.items():
            check_tensor(each, tensor, config)
        details = {"bytes_by_part": parts, "parameters": config.model.parameters}
        return _artifact(config, tensors, file.tokenizer, f"the tokenizer in {path}", details, file.bytes, template)


def _artifact(
    config: ArtifactConfig,
    tensors: Mapping[str, Tensor],
    tokenizer_json: str | None,
    tokenizer_name: str,
    details: dict[str, Any],
    size: int,
    chat_template: str | None,
) -> Artifact:
    tokenizer = None if tokenizer_json is None else parse_tokenizer(tokenizer_json, tokenizer_name, ArtifactError)
    if tokenizer is not None:
        require_known_ids(tokenizer, config.model.vocab_size or 0)
    return Artifact(config, tensors, tokenizer, tokenizer_json, details, size, chat_template)


def _read_config(path: Path) -> ArtifactConfig:
    _refuse_oversized(path, _MAX_CONFIG_BYTES)
    return _parsed_config(read_json(path, ArtifactError), str(path))


def _parsed_config(values: Any, path: str) -> ArtifactConfig:
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} holds a {type(values).__name__}, not an object")
    try:
        json.dumps(values, allow_nan=False)  # JSON's 1e999 is read as infinity
        _require_few(values)
        for_transformers = {key: values.pop(key) for key in KEYS & values.keys()}
        config = ArtifactConfig(**values)
        _require_exact(values, config.model_dump(exclude={"training"}), "")
        if for_transformers:
            _require_same_shape(for_transformers, model_settings(config.model))
        return config
    except (ArithmeticError, RuntimeError, ValueError) as problem:
        raise ArtifactError(f"{path} cannot be used: {_brief(problem)}") from None


def _require_same_shape(given: dict[str, Any], meant: dict[str, Any]) -> None:
    """Refuse a config that tells transformers of another model than it tells us."""
    for key in sorted(given.keys() | meant.keys()):
        if key not in given:
            raise ValueError(f"it has some of the keys for transformers, but lacks {key}")
        if key not in meant or given[key] != meant[key]:
            raise ValueError(f"{key} = {quoted(given[key])} describes another model than the section `model` does")
    _require_exact(given, meant, "")


def _require_few(config: dict[str, Any]) -> None:
    """Refuse a config with more values than any model needs, before it is validated."""
    left, found = [value for key, value in config.items() if key != "training"], len(config)
    while left:
        value = left.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        found += len(inner)
        if found > _MAX_CONFIG_VALUES:
            raise ValueError(f"it holds more than {_MAX_CONFIG_VALUES} values beside training")
        left += inner


def _require_exact(given: Any, meant: Any, place: str) -> None:
    """Refuse values that were accepted only by converting them, such as "16", true or 16.0 for the integer 16.

    Args:
        given: content of the file.
        meant: the same after validation, without `training`, which may hold anything.
        place: dotted name of the value, for the message.
    """
    if isinstance(given, dict):
        for key in given.keys() & meant.keys():
            _require_exact(given[key], meant[key], f"{place}.{key}" if place else key)
    elif isinstance(given, list):
        for index, (value, converted) in enumerate(zip(given, meant, strict=True)):
            _require_exact(value, converted, f"{place}.{index}")
    elif type(given) is not type(meant) and not (type(given) is int and type(meant) is float):
        kind = type(meant).__name__
        raise ValueError(f"{place} = {quoted(given)} is of another type than it must be; write it as {kind} {meant!r}")


def _refuse_oversized(path: Path, limit: int) -> None:
    """Refuse anything but a plain file (a pipe, a device), and a file larger than `limit`, before reading it."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; the folder is not a complete artifact")
    if path.stat().st_size > limit:
        raise ArtifactError(f"{path} is {path.stat().st_size} bytes long, but at most {limit} are allowed")


def _brief(problem: object) -> str:
    """Shorten a message to one line of bounded length."""
    text = " ".join(str(problem).split())
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + " ..."
