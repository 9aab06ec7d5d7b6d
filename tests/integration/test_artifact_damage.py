"""Whatever happens to an artifact's files, loading it raises ArtifactError or gives the model; it never does else."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tokenizers import Tokenizer, models

import questlm
from questlm.artifact.format import FORMAT as FORMAT_NAME
from questlm.artifact.format import VERSION
from questlm.artifact.read import load_artifact
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ArtifactError
from questlm.export.pack import pack
from questlm.json_files import canonical_json
from questlm.manifest import write_manifest
from questlm.models import Llama

CONFIG = ModelConfig(layers=1, hidden=16, heads=2, mlp_hidden=32, vocab_size=24)
FILES = ("MANIFEST.json", "config.json", "model.safetensors", "tokenizer.json")
IDS = torch.arange(6)[None]


def _tokenizer(size: int) -> str:
    return Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0")).to_str()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "a"
    spec = QuantSpec(weight_bits="ternary", act_bits=4, embeddings="int8")
    model = questlm.prepare(Llama(CONFIG).initialize(0), spec)
    pack(model, path, tokenizer=_tokenizer(20), training={"note": "x"})
    return path


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "a"))


def rewrite_manifest(folder: Path) -> None:
    details = json.loads((folder / "MANIFEST.json").read_text())["details"]
    write_manifest(folder, FORMAT_NAME, VERSION, details)


def refused(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load_artifact(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def test_the_whole_artifact_loads(copy: Path) -> None:
    rewrite_manifest(copy)
    assert load_artifact(copy).config.model == CONFIG


def test_random_damage_is_always_refused(artifact: Path, copy: Path) -> None:
    draw = random.Random(0)
    whole = {name: (artifact / name).read_bytes() for name in FILES}
    for _ in range(1000):
        name = draw.choice(FILES)
        kind = draw.choice(("flip", "flip", "flip", "truncate", "extend", "delete", "swap", "zero"))
        path, data = copy / name, bytearray(whole[name])
        if kind == "flip":
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == "truncate":
            del data[draw.randrange(len(data)) :]
        elif kind == "extend":
            data += draw.randbytes(draw.randrange(1, 40))
        elif kind == "zero":
            start = draw.randrange(len(data))
            data[start : start + 64] = bytes(len(data[start : start + 64]))
        elif kind == "swap":
            other = draw.choice([n for n in FILES if n != name])
            data = bytearray(whole[other])
            (copy / other).write_bytes(whole[name])
        if kind == "delete":
            path.unlink()
        else:
            path.write_bytes(data)
        if any(not (copy / n).exists() or (copy / n).read_bytes() != whole[n] for n in FILES):
            refused(copy)
        for n in FILES:
            (copy / n).write_bytes(whole[n])


def test_random_damage_that_was_sealed_again_is_refused_or_harmless(artifact: Path, copy: Path) -> None:
    """The attacker fixes the manifest, so only what is inside the files can give the damage away."""
    draw = random.Random(1)
    whole = {name: (artifact / name).read_bytes() for name in FILES}
    header_end = 8 + int.from_bytes(whole["model.safetensors"][:8], "little")
    loaded = 0
    for _ in range(600):
        name = draw.choice(FILES[1:])
        data = bytearray(whole[name])
        limit = draw.choice((len(data), header_end)) if name == "model.safetensors" else len(data)
        for _ in range(draw.choice((1, 1, 3))):
            data[draw.randrange(limit)] ^= 1 << draw.randrange(8)
        (copy / name).write_bytes(data)
        rewrite_manifest(copy)
        try:
            load_artifact(copy)
            loaded += 1
        except ArtifactError:
            pass
        (copy / name).write_bytes(whole[name])
    assert 0 < loaded < 600


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[int(key)] if isinstance(config, list) else config[key]
        config[keys[-1]] = to

    return edit


FORMAT = ("quantization_config", "formats", "1")
LAYERS = ("quantization_config", "layers")
ROPE = {"kind": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position": 8192}
CONFIG_LIES = [
    *(
        _set("model", key, to=value)
        for key in ("layers", "hidden", "vocab_size", "mlp_hidden", "heads", "head_dim")
        for value in (0, -1, 10**9, 10**400, 1e308, "x", [], True, 8, 1024)
    ),
    _set("model", "vocab_size", to=None),
    _set("model", "vocab_size", to=4_194_304),
    *(_set("model", "norm_eps", to=value) for value in (0, -1, 10**400, None)),
    *(_set("model", "rope_theta", to=value) for value in (0, 1e-300, 1e300, 10**400)),
    *(
        _set("model", "rope_scaling", to=ROPE | {key: value})
        for key in ROPE
        for value in (0, -1, 1e-300, 1e300, 10**400, "x", None, [], True)
    ),
    *(_set("model", "rope_scaling", to=value) for value in (0, "linear", [], {}, {"kind": "linear", "factor": 2})),
    _set("model", "tied_head", to=True),
    _set("model", "surprise", to=1),
    _set("format", to="other"),
    *(_set("version", to=value) for value in (0, 1, "2", None, 10**400)),
    *(_set(*FORMAT, "block_size", to=value) for value in (0, -16, 3, 32, 64, 128, 2**40, None)),
    *(_set(*FORMAT, "weight", "levels", to=value) for value in (0, 1, 2, 4, 5, 255, 256, 257, -3, 10**300, None)),
    *(_set(*FORMAT, "act", "levels", to=value) for value in (0, 1, 257, 10**300)),
    *(
        _set(*FORMAT, part, "step_per_scale", to=v)
        for part in ("weight", "act")
        for v in (0, -1, 1e-320, 1e300, 10**400)
    ),
    *(_set(*FORMAT, "weight", "group", to=value) for value in (1, 2, -1, "x")),
    *(_set(*FORMAT, part, "zero", to=value) for part in ("weight", "act") for value in (-1, 0.25, 300, 1e300, "x")),
    *(
        _set(*FORMAT, part, "table", to=value)
        for part in ("weight", "act")
        for value in ([], [1], [float(i) for i in range(16)][::-1], ["x"] * 16, [1e300] * 16, 5)
    ),
    *(_set(*FORMAT, part, "scale", to=value) for part in ("weight", "act") for value in ("one", "absmean", "x", 1)),
    *(_set(*FORMAT, part, "step_per_scale", to=None) for part in ("weight", "act")),
    *(_set(*FORMAT, key, to=True) for key in ("weight_offset", "act_offset")),
    *(_set(*FORMAT, "input_norm", to=value) for value in (0, -1, 1e-5, 2, "x")),
    *(
        _set(*FORMAT, "narrow", to={"axis": axis, "width": width, "weight": {"levels": 255, "step_per_scale": 1.0}})
        for axis in ("rows", "columns", "x")
        for width in (0, 1, 16, 10**9)
    ),
    *(_set(*FORMAT, "weight", to=value) for value in ("float32", "bf16-2:4", "bf16", "int8", "int4", None, [], 5)),
    *(_set(*LAYERS, "embed", to=value) for value in (-1, 1, 2, 10**9, None, "0")),
    _set(*LAYERS, "layers.7.mlp.up", to=0),
    _set(*LAYERS, to={}),
    _set("quantization_config", "formats", to=[]),
    _set("quantization_config", "weight_bits", to=9),
    _set("quantization_config", to=None),
    _set("training", to=[]),
    _set("model", to="x" * 100_000),
    _set("self", to=1),
]


@pytest.mark.parametrize("number", range(len(CONFIG_LIES)))
def test_a_config_that_lies_is_refused_or_describes_the_same_model(artifact: Path, copy: Path, number: int) -> None:
    config = json.loads((copy / "config.json").read_text())
    CONFIG_LIES[number](config)
    (copy / "config.json").write_text(json.dumps(config))
    rewrite_manifest(copy)
    before, begun = psutil.Process().memory_info().rss, time.process_time()
    try:
        load_artifact(copy)
    except ArtifactError as problem:
        assert len(str(problem)) < 1000
    else:  # a value that happens to be valid, such as "0" for 0
        assert torch.isfinite(questlm.load(copy).logits(IDS)).all()
        assert load_artifact(copy).tensors.keys() == load_artifact(artifact).tensors.keys()
    assert psutil.Process().memory_info().rss - before < 200 * 2**20
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "text",
    [
        b"", b"null", b"[]", b"1e999", b"{", b'{"format": 1}', b"\xff\xfe\x00", b'"\xed\xa0\x80"', b'{"a": "\\ud800"}',
        b"9" * 5000, b"[" * 200_000, b'{"a":' * 100_000, b'{"model": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"NaN", b"\x00" * 100, b"[0" + b",0" * 3_000_000 + b"]",
    ],
    ids=range(16),
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "MANIFEST.json", "tokenizer.json"])
def test_json_that_is_none_is_refused(copy: Path, name: str, text: bytes) -> None:
    (copy / name).write_bytes(text)
    if name != "MANIFEST.json":
        write_manifest(copy, FORMAT_NAME, VERSION)
    refused(copy)


@pytest.mark.parametrize("value", ["1e309", "-1e309", "NaN", "Infinity", "1e-400"])
@pytest.mark.parametrize("key", ['"step_per_scale": ', '"norm_eps": ', '"rope_theta": ', '"hidden": '])
def test_numbers_beyond_any_float_are_refused(copy: Path, key: str, value: str) -> None:
    text = (copy / "config.json").read_text()
    start = text.index(key) + len(key)
    end = start + text[start:].index("\n")
    (copy / "config.json").write_text(text[:start] + value + "," * (text[end - 1] == ",") + text[end:])
    rewrite_manifest(copy)
    assert "config.json" in refused(copy)


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _with_header(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


CODES, STEP = "layers.0.mlp.up.codes", "layers.0.mlp.up.step"
HEADER_LIES: list[Callable[[dict[str, Any]], Any]] = [
    lambda h: h[CODES].update(shape=[2**62, 4]),
    lambda h: h[CODES].update(shape=[2**64, 2**64]),
    lambda h: h[CODES].update(shape=[-1, 4]),
    lambda h: h[CODES].update(shape=[4, 32]),
    lambda h: h[CODES].update(shape=[128]),
    lambda h: h[CODES].update(shape=[]),
    lambda h: h[CODES].update(dtype="I8"),
    lambda h: h[CODES].update(dtype="F4"),
    lambda h: h[CODES].update(dtype="Q9"),
    lambda h: h[STEP].update(dtype="I32"),
    lambda h: h[STEP].update(data_offsets=[0, 2**63]),
    lambda h: h[STEP].update(data_offsets=[-4, 4]),
    lambda h: h[STEP].update(data_offsets=[10**30, 10**30 + 128]),
    lambda h: h[STEP].update(data_offsets=h[CODES]["data_offsets"]),
    lambda h: h[STEP].update(data_offsets=h[STEP]["data_offsets"][::-1]),
    lambda h: h.pop(STEP),
    lambda h: h.update(extra={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    lambda h: h.update({"../" + STEP: h.pop(STEP)}),
    lambda h: h.update({"x" * 10_000: h.pop(STEP)}),
    lambda h: h.clear(),
    lambda h: h.update(__metadata__={"a": 1}),
]


@pytest.mark.parametrize("number", range(len(HEADER_LIES)))
def test_a_tensor_header_that_lies_is_refused(copy: Path, number: int) -> None:
    path = copy / "model.safetensors"
    header, body = _header(path.read_bytes())
    HEADER_LIES[number](header)
    path.write_bytes(_with_header(header, body))
    rewrite_manifest(copy)
    refused(copy)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 7, b"\xff" * 8, b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}", _with_header([], b"")],
    ids=range(6),
)
def test_a_tensor_file_that_is_none_is_refused(copy: Path, data: bytes) -> None:
    (copy / "model.safetensors").write_bytes(data)
    rewrite_manifest(copy)
    refused(copy)


def test_unaligned_tensors_are_refused_or_read_right(artifact: Path, copy: Path) -> None:
    path = copy / "model.safetensors"
    header, body = _header(path.read_bytes())
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda item: (item[1]["dtype"] != "U8", item[1]["data_offsets"][0]))
    parts, offset = [], 0
    for _, entry in entries:  # uint8 codes first: an odd number of bytes, or not a multiple of four, before the floats
        start, end = entry["data_offsets"]
        parts.append(body[start:end])
        entry["data_offsets"] = [offset, offset + end - start]
        offset += end - start
    text = json.dumps(header).encode()
    text += b" " * ((1 - len(text)) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    rewrite_manifest(copy)
    try:
        tensors = load_artifact(copy).tensors
    except ArtifactError:
        return
    for name, tensor in load_artifact(artifact).tensors.items():
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        (CODES, 0, b"\xf3"),  # 243 is no five ternary digits
        (CODES, 3, b"\x03"),  # 16 codes: the fourth byte of a row holds one digit
        (STEP, 0, b"\x00\x00\xc0\x7f"),  # NaN
        (STEP, 0, b"\x00\x00\x80\x7f"),  # infinity
        (STEP, 4, b"\x00\x00\x80\xbf"),  # -1
        ("embed.codes", 5, b"\x80"),  # -128
        ("embed.scale", 0, b"\x00\x00\x80\xbf"),
        ("norm.weight", 8, b"\x00\x00\x80\xff"),
    ],
)
def test_values_out_of_range_are_refused(copy: Path, name: str, at: int, value: bytes) -> None:
    path = copy / "model.safetensors"
    header, body = _header(path.read_bytes())
    start = header[name]["data_offsets"][0] + at
    path.write_bytes(_with_header(header, body[:start] + value + body[start + len(value) :]))
    rewrite_manifest(copy)
    assert name in refused(copy)


def _forge(folder: Path, files: Any, **fields: Any) -> None:
    manifest: dict[str, Any] = {"kind": FORMAT_NAME, "version": VERSION, "files": files, "details": {}} | fields
    manifest["digest"] = hashlib.sha256(canonical_json(manifest).encode()).hexdigest()
    (folder / "MANIFEST.json").write_text(canonical_json(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "../secret", "/etc/passwd", "a/../../secret", "..", ".", "", "a\\b", "a\0b", "sub/file", "x" * 300, "C:secret",
        "🙂" * 100,
    ],
    ids=range(12),
)  # fmt: skip
def test_names_that_lead_out_of_the_folder_are_refused(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_bytes(b"s")
    files = json.loads((copy / "MANIFEST.json").read_text())["files"]
    _forge(copy, files | {name: {"bytes": 1, "sha256": hashlib.sha256(b"s").hexdigest()}})
    refused(copy)


@pytest.mark.parametrize("entry", [None, [], "x", {}, {"bytes": -1}, {"bytes": 10**300, "sha256": 5}])
def test_manifest_entries_of_other_shapes_are_refused(copy: Path, entry: Any) -> None:
    files = json.loads((copy / "MANIFEST.json").read_text())["files"]
    _forge(copy, files | {"config.json": entry})
    refused(copy)


@pytest.mark.parametrize("fields", [{"kind": "checkpoint"}, {"version": VERSION - 1}, {"version": None}])
def test_manifests_of_other_things_are_refused(copy: Path, fields: dict[str, Any]) -> None:
    _forge(copy, json.loads((copy / "MANIFEST.json").read_text())["files"], **fields)
    refused(copy)


def test_a_manifest_without_a_table_of_files_is_refused(copy: Path) -> None:
    _forge(copy, [])
    refused(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_manifest_that_leaves_a_file_out_is_refused(copy: Path, name: str) -> None:
    files = json.loads((copy / "MANIFEST.json").read_text())["files"]
    files.pop(name)
    _forge(copy, files)
    assert f"no {name}" in refused(copy)


def test_a_tokenizer_that_is_not_listed_is_not_read(copy: Path) -> None:
    files = json.loads((copy / "MANIFEST.json").read_text())["files"]
    files.pop("tokenizer.json")
    _forge(copy, files)
    assert load_artifact(copy).tokenizer is None


@pytest.mark.parametrize("name", FILES)
def test_links_out_of_the_folder_are_refused(copy: Path, name: str) -> None:
    outside = copy.parent / "outside"
    (copy / name).rename(outside)
    (copy / name).symlink_to(outside)
    if name != "MANIFEST.json":  # what the manifest itself says is checked by its digest, wherever it lies
        refused(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["loop", "device", "pipe", "folder"])
def test_things_that_are_not_files_are_refused(copy: Path, name: str, kind: str) -> None:
    path = copy / name
    path.unlink()
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    refused(copy)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(copy: Path) -> None:
    for size, fits in ((24, True), (25, False)):
        (copy / "tokenizer.json").write_text(_tokenizer(size))
        rewrite_manifest(copy)
        if fits:
            assert load_artifact(copy).tokenizer.get_vocab_size() == size
        else:
            assert "has the id 24" in refused(copy)


def test_folders_that_are_no_artifacts_are_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refused(tmp_path / "absent")
    assert "is missing" in refused(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in refused(tmp_path / "file")
