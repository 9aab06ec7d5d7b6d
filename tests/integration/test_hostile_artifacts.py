"""Artifacts that were changed, with a new manifest: each is refused in one sentence, or means just what it says."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import questlm
from helpers.packed_models import IDS, trained
from questlm.artifact.for_transformers import KEYS, model_settings
from questlm.artifact.format import FORMAT, VERSION
from questlm.artifact.read import load_artifact
from questlm.config import QuantSpec
from questlm.errors import ArtifactError
from questlm.export.pack import pack
from questlm.manifest import write_manifest

SPECS = {
    "quest": QuantSpec(embeddings="int8"),
    "pquant": QuantSpec(method="pquant", weight_bits=1, act_bits=8, embeddings="bf16"),
    "lsq+": QuantSpec(method="lsq+", embeddings="bf16"),
    "lloydmax": QuantSpec(format="lloydmax", weight_bits=3, embeddings="bf16"),
    "2:4": QuantSpec(format="int-2:4", embeddings="bf16"),
}
VALUES = [
    None, True, False, 0, 1, -1, 2, 16, 48.0, 0.5, 1e308, 10**30, 2**63, 2**40, "", "4", "\x1b[31m\u202e" * 30, "bf16",
    [], [1], [[]], {}, {"a": 1}, [0] * 20, "nan",
]  # fmt: skip
STEP = "layers.0.mlp.up.act_step"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An artifact of each of SPECS."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name, spec in SPECS.items():
        pack(trained(spec), folder / name.replace(":", ""))
    return {name: folder / name.replace(":", "") for name in SPECS}


@pytest.fixture
def copy(artifacts: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifacts["lsq+"], tmp_path / "a"))


def refused(folder: Path) -> str:
    """The message of the refusal; little time and less than 300 MiB are spent on it."""
    write_manifest(folder, FORMAT, VERSION)
    process, begun = psutil.Process(), time.process_time()
    before = process.memory_info().rss
    with pytest.raises(ArtifactError) as caught:
        questlm.load(folder).logits(IDS)
    assert time.process_time() - begun < 20  # about 3
    assert process.memory_info().rss - before < 300 * 2**20
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change the content of config.json; what `change` returns, if anything, takes its place."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    replaced = change(config)
    path.write_text(json.dumps(config if replaced is None else replaced))


def set_at(place: tuple[str | int, ...], value: Any) -> Callable[[Any], Any]:
    def change(config: Any) -> Any:
        for key in place[:-1]:
            config = config[key]
        if not place:
            return value
        config[place[-1]] = value
        return None

    return change


def places(value: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield before
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*before, key))


def test_any_value_at_any_place_is_refused_or_taken_for_what_it_is(artifacts: dict[str, Path], tmp_path: Path) -> None:
    draw, taken = random.Random(0), 0
    for round_ in range(250):
        whole = artifacts[draw.choice(list(artifacts))]
        folder = tmp_path / str(round_)
        folder.mkdir()
        for file in whole.iterdir():
            (folder / file.name).hardlink_to(file)
        (folder / "config.json").unlink()
        config = json.loads((whole / "config.json").read_text())
        changed = set_at(draw.choice(list(places(config))), draw.choice(VALUES))(config)
        config = config if changed is None else changed
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "MANIFEST.json").unlink()
        write_manifest(folder, FORMAT, VERSION)
        try:
            read = load_artifact(folder)
        except ArtifactError as problem:
            assert str(problem).isprintable()
            assert len(str(problem)) < 1000
        else:
            taken += 1
            questlm.load(folder).logits(IDS)
            meant = json.loads(read.config.model_dump_json()) | model_settings(read.config.model)
            assert json.dumps(meant | config, sort_keys=True) == json.dumps(config, sort_keys=True)
            assert all(type(a) is type(b) or isinstance(b, float) for a, b in leaves(config, meant))
    assert 10 < taken < 100


def leaves(given: Any, meant: Any) -> Iterator[tuple[Any, Any]]:
    """Pairs of values at the same place."""
    if isinstance(given, dict):
        for key in given:
            yield from leaves(given[key], meant[key])
    elif isinstance(given, list):
        for pair in zip(given, meant, strict=True):
            yield from leaves(*pair)
    else:
        yield given, meant


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("version",), 2.0),
        (("model", "hidden"), "48"),
        (("model", "hidden"), 48.0),
        (("model", "tied_head"), 0),
        (("model", "tied_head"), "no"),
        (("model", "norm_eps"), "1e-5"),
        (("quantization_config", "layers", "layers.0.mlp.up"), True),
        (("quantization_config", "layers", "embed"), False),
        (("quantization_config", "weight_bits"), "4"),
        (("quantization_config", "formats", 1, "block_size"), "1"),
        (("quantization_config", "formats", 1, "act_offset"), 1),
        (("quantization_config", "formats", 1, "act", "zero"), "8"),
        (("quantization_config", "formats", 1, "act", "levels"), 16.0),
        (("tie_word_embeddings",), 0),
        (("num_hidden_layers",), 2.0),
        (("rms_norm_eps",), 0.5),
        (("architectures",), ["GPT2LMHeadModel"]),
        (("rope_scaling",), None),
    ],
)
def test_a_value_that_would_have_to_be_converted_is_refused(copy: Path, place: tuple[Any, ...], value: Any) -> None:
    edit(copy, set_at(place, value))
    assert str(place[-1]) in refused(copy)


def test_an_integer_will_do_for_a_number(copy: Path) -> None:
    before = questlm.load(copy).logits(IDS)
    edit(copy, set_at(("model", "rope_theta"), 10_000))
    write_manifest(copy, FORMAT, VERSION)
    assert torch.equal(questlm.load(copy).logits(IDS), before)


def test_the_keys_for_transformers_are_all_there_or_none(copy: Path) -> None:
    before = questlm.load(copy).logits(IDS)
    edit(copy, lambda config: config.pop("model_type") and None)
    assert "model_type" in refused(copy)
    edit(copy, lambda config: {key: value for key, value in config.items() if key not in KEYS})
    write_manifest(copy, FORMAT, VERSION)
    assert torch.equal(questlm.load(copy).logits(IDS), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["quantization_config"].update(formats=[5] * 1_300_000),
        lambda c: c["quantization_config"]["formats"][1]["act"].update(table=["x"] * 800_000),
        lambda c: c["quantization_config"]["layers"].update({f"a{i}": "x" for i in range(200_000)}),
        lambda c: c.update({f"a{i}": 0 for i in range(250_000)}),
        lambda c: c["model"].update({f"a{i}": 0 for i in range(250_000)}),
        lambda c: c["model"].update({"x" * 3_900_000: 1}),
        lambda c: c["quantization_config"].update(method="x" * 3_900_000),
        lambda c: c.update(training={"a": "x" * 4_200_000}),
    ],
    ids=["formats", "table", "layers", "outer keys", "keys", "key", "text", "file"],
)
def test_a_config_of_absurd_size_costs_little(copy: Path, change: Callable[[Any], Any]) -> None:
    edit(copy, change)
    assert "config.json" in refused(copy)


def test_a_key_that_is_there_twice_among_many_is_found_at_once(copy: Path) -> None:
    text = (copy / "config.json").read_text().rstrip().removesuffix("}").rstrip()
    many = "".join(f',"b{i}":1' for i in range(250_000))
    (copy / "config.json").write_text(f'{text}{many},"twice":1,"twice":2}}')
    assert "the key 'twice' is there twice" in refused(copy)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_what_is_said_of_the_training_is_finite_too(copy: Path, number: str) -> None:
    text = (copy / "config.json").read_text().replace('"training": {}', f'"training": {{"seq_len": {number}}}')
    (copy / "config.json").write_text(text)
    assert "config.json" in refused(copy)


# -- tensors -----------------------------------------------------------------------------------------------------------


def rewrite_header(folder: Path, change: Callable[[str], str], body: bytes | None = None) -> None:
    """Change the text of the header of model.safetensors, and the data behind it if given."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = change(data[8:end].decode().rstrip())
    path.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode() + (body or data[end:]))


def test_a_tensor_that_is_named_twice_is_refused(copy: Path) -> None:
    def twice(header: str) -> str:
        entry = json.loads(header)[STEP]
        return f"{header[:-1]},{json.dumps(STEP)}:{json.dumps(entry)}}}"

    rewrite_header(copy, twice)
    assert f"the key '{STEP}' is there twice" in refused(copy)


def test_a_header_of_absurd_size_is_refused_before_it_is_read(copy: Path) -> None:
    rewrite_header(copy, lambda header: header + " " * (17 * 2**20))
    assert "has a header of" in refused(copy)


def test_names_of_tensors_cannot_control_a_terminal(copy: Path) -> None:
    def rename(header: str) -> str:
        return header.replace(json.dumps(STEP), json.dumps("\x1b[31m\u202e" + "x" * 10_000))

    rewrite_header(copy, rename)
    assert "model.safetensors" in refused(copy)


@pytest.mark.parametrize(("dtype", "bits"), [("I32", 32), ("U32", 32), ("F16", 16), ("BF16", 16)])
def test_a_step_of_another_dtype_is_refused(copy: Path, dtype: str, bits: int) -> None:
    def retype(header: str) -> str:
        entries = json.loads(header)
        entries[STEP].update(dtype=dtype, shape=[32 // bits, 1])
        return json.dumps(entries)

    rewrite_header(copy, retype)
    assert "model.safetensors" in refused(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.0])
@pytest.mark.parametrize("name", [STEP, "layers.0.mlp.up.act_offset", "layers.0.mlp.up.step", "norm.weight"])
def test_floats_that_no_step_offset_or_gain_can_have_are_refused(copy: Path, name: str, value: float) -> None:
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    start += json.loads(data[8:start])[name]["data_offsets"][0]
    data[start : start + 4] = torch.tensor(value).numpy().tobytes()
    path.write_bytes(data)
    if value == -1 and name.endswith(("offset", "weight")):  # both may be negative
        write_manifest(copy, FORMAT, VERSION)
        questlm.load(copy).logits(IDS)
    else:
        assert name in refused(copy)


# -- evaluation --------------------------------------------------------------------------------------------------------
