"""A second reader of packed models, in NumPy and float64, written from docs/concepts/artifact.md alone.

It shows that the document suffices, and reads like its section "Running the model". It imports nothing of questlm, is
not made to be fast, and runs one sequence at a time without a cache.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Json = dict[str, Any]

_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1"}
_MODEL_DEFAULTS = {
    "layers": 4, "hidden": 256, "heads": 2, "kv_heads": None, "head_dim": None, "mlp_hidden": None,
    "tied_head": False, "norm_eps": 1e-5, "rope_theta": 10_000.0, "rope_scaling": None, "qkv_bias": False,
    "qk_norm": False,
}  # fmt: skip
_FORMAT_DEFAULTS: Json = {"weight_offset": False, "act_offset": False, "input_norm": None, "narrow": None}
_FORMAT_DEFAULTS["steps"] = "fp32"
_GRID_DEFAULTS: Json = {"scale": "rms", "zero": None, "table": None, "group": 0}


# -- files -------------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Json:
    """The manifest of `folder`, after its own digest and every file's size and hash have been checked."""
    text = (folder / "MANIFEST.json").read_text(encoding="utf-8")
    manifest: Json = json.loads(text)
    assert (manifest["kind"], manifest["version"]) == ("questlm-artifact", 2), "another format or version"
    assert text == _spelled(manifest), "the manifest is not spelled as it must be"
    unsigned = {key: value for key, value in manifest.items() if key != "digest"}
    assert manifest["digest"] == hashlib.sha256(_spelled(unsigned).encode()).hexdigest(), "the manifest is damaged"
    for name, entry in manifest["files"].items():
        assert name not in ("", ".", "..") and not set(name) & set("/\\\0"), "a file outside the folder"
        content = (folder / name).read_bytes()
        assert len(content) == entry["bytes"], f"{name} has another size"
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], f"{name} is damaged"
    return manifest


def _spelled(value: Json) -> str:
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_tensors(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file; bf16 becomes float32."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        values: Array = np.frombuffer(content[start + first : start + last], np.dtype(_DTYPES[entry["dtype"]]))
        values = values.reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = values
    return tensors


# -- codes -------------------------------------------------------------------------------------------------------------


def unpack(packed: Array, levels: int, length: int) -> Array:
    """Codes (rows, length) of packed rows."""
    if levels == 3:
        digits = [packed // 3**place % 3 for place in range(5)]
        return np.stack(digits, axis=-1).reshape(len(packed), -1)[:, :length]
    bits = (levels - 1).bit_length()
    stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : length * bits]
    return stream.reshape(len(packed), length, bits) @ (1 << np.arange(bits))


def level_of(codes: Array, grid: Json) -> Array:
    """What codes stand for, in steps."""
    if grid["table"] is not None:
        return np.array(grid["table"])[codes]
    return codes - zero_of(grid)


def zero_of(grid: Json) -> float:
    """The code that stands for 0."""
    return float((grid["levels"] - 1) / 2 if grid["zero"] is None else grid["zero"])


def e4m3(codes: Array) -> Array:
    """The numbers, not negative, of FP8 E4M3 codes: 4 bits of exponent with a bias of 7, and 3 of mantissa."""
    exponent, mantissa = codes.astype(int) >> 3, codes.astype(int) & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))


def spread(half: Array, kept: Array, group: int) -> Array:
    """Rows of which `half` holds the kept groups of `group` entries, with 0 in the others."""
    width = 2 * half.shape[1]
    mask = np.repeat(unpack(kept, 2, width // group), group, axis=1) == 1
    rows = np.zeros((len(half), width))
    rows[mask] = half.reshape(-1)  # both in the order of the columns, row after row
    return rows


def hadamard(x: Array, block_size: int) -> Array:
    """Transform each block of the last dimension."""
    number = range(block_size)
    signs = [[(-1.0) ** (row & column).bit_count() for column in number] for row in number]
    matrix = np.array(signs) / math.sqrt(block_size)
    return (x.reshape(-1, block_size) @ matrix).reshape(x.shape)


# -- the model ---------------------------------------------------------------------------------------------------------


class Reader:
    """A packed model.

    Attributes:
        shape: `model` of config.json, with defaults filled in.
        formats: the format of each matrix by its name, with defaults filled in.
        tensors: what is stored, by name.
    """

    def __init__(self, folder: Path) -> None:
        assert {"config.json", "model.safetensors"} <= read_manifest(folder)["files"].keys(), "a file is missing"
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.shape: Json = _MODEL_DEFAULTS | config["model"]
        self.shape["kv_heads"] = self.shape["kv_heads"] or self.shape["heads"]
        self.shape["head_dim"] = self.shape["head_dim"] or self.shape["hidden"] // self.shape["heads"]
        quantization = config["quantization_config"]
        formats = [_with_defaults(form) for form in quantization["formats"]]
        self.formats: dict[str, Json] = {name: formats[index] for name, index in quantization["layers"].items()}
        self.tensors = read_tensors(folder / "model.safetensors")
        self.weights = {name: self._weight(name) for name in self.formats}  # of two branches: a pair

    def logits(self, ids: list[int]) -> Array:
        """(tokens, vocab_size) of a sequence of token ids."""
        x = self.weights["embed"][ids]
        angles = np.outer(np.arange(len(ids)), self._frequencies())
        for index in range(self.shape["layers"]):
            block = f"layers.{index}"
            x = x + self._attention(f"{block}.attention", self._norm(f"{block}.attention_norm", x), angles)
            h = self._norm(f"{block}.mlp_norm", x)
            gate = self._layer(f"{block}.mlp.gate", h)
            inner = gate / (1 + np.exp(-gate)) * self._layer(f"{block}.mlp.up", h)
            x = x + self._layer(f"{block}.mlp.down", inner)
        return self._layer("embed" if self.shape["tied_head"] else "lm_head", self._norm("norm", x))

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The `count` likeliest tokens after `ids`, one after another."""
        text = list(ids)
        for _ in range(count):
            text.append(int(self.logits(text)[-1].argmax()))
        return text[len(ids) :]

    def nearest_codes(self, u: Array, grid: Json) -> Array:
        """Codes of the entries u, which are in steps."""
        if grid["table"] is not None:
            middles = [(a + b) / 2 for a, b in zip(grid["table"], grid["table"][1:], strict=False)]
            return np.searchsorted(middles, u, side="left")
        zero = zero_of(grid)
        fraction = zero % 1
        return np.clip(np.rint(u + fraction) + zero - fraction, 0, grid["levels"] - 1).astype(int)

    def _norm(self, name: str, x: Array) -> Array:
        return _rms_norm(x, self.tensors[f"{name}.weight"], self.shape["norm_eps"])

    def _attention(self, name: str, x: Array, angles: Array) -> Array:
        tokens, width = len(x), self.shape["head_dim"]
        biases = [self.tensors[f"{name}.{part}.bias"] if self.shape["qkv_bias"] else 0.0 for part in "qkv"]
        rows = [self._layer(f"{name}.{part}", x) + bias for part, bias in zip("qkv", biases, strict=True)]
        q, k, v = (each.reshape(tokens, -1, width).swapaxes(0, 1) for each in rows)
        if self.shape["qk_norm"]:
            q, k = self._norm(f"{name}.q_norm", q), self._norm(f"{name}.k_norm", k)
        q, k = _rotated(q, angles), _rotated(k, angles)
        readers = self.shape["heads"] // self.shape["kv_heads"]
        k, v = np.repeat(k, readers, axis=0), np.repeat(v, readers, axis=0)
        scores = q @ k.swapaxes(1, 2) / math.sqrt(width)
        scores[:, ~np.tri(tokens, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads = weights / weights.sum(axis=-1, keepdims=True) @ v
        return self._layer(f"{name}.o", heads.swapaxes(0, 1).reshape(tokens, -1))

    def _frequencies(self) -> Array:
        width, scaling = self.shape["head_dim"], self.shape["rope_scaling"]
        frequencies = self.shape["rope_theta"] ** (-2 * np.arange(width // 2) / width)
        if scaling is None:
            return frequencies
        slow = frequencies / scaling["factor"]
        if scaling["kind"] == "linear":
            return slow
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = frequencies * scaling["original_max_position"] / (2 * math.pi)
        share = np.clip((turns - low) / (high - low), 0, 1)
        return share * frequencies + (1 - share) * slow

    def _layer(self, name: str, x: Array) -> Array:
        """Output of the layer `name` for the inputs x (tokens, columns)."""
        form, weight = self.formats[name], self.weights[name]
        if form["input_norm"] is not None:
            x = _rms_norm(x, self.tensors[f"{name}.input_norm"], form["input_norm"])
        if form["narrow"] is None:
            return self._input(name, x) @ weight.T
        wide, narrow = weight
        if form["narrow"]["axis"] == "rows":
            return np.concatenate((self._input(name, x) @ wide.T, self._input(name, x) @ narrow.T), axis=1)
        first, last = np.split(x, [wide.shape[1]], axis=1)
        return self._input(name, first) @ wide.T + self._input(name, last) @ narrow.T

    def _input(self, name: str, x: Array) -> Array:
        """The values that the inputs x of a layer take: transformed and quantised as its format says."""
        form = self.formats[name]
        grid, x = form["act"], hadamard(x, form["block_size"])
        if grid is None:
            return x
        offset = self.tensors[f"{name}.act_offset"].astype(float) if form["act_offset"] else 0.0
        z = x - offset
        if grid["scale"] == "rms":
            scale = np.sqrt(np.mean(z**2, axis=1, keepdims=True))
        else:
            scale = np.abs(z).max(axis=1, keepdims=True) if grid["scale"] == "absmax" else np.ones((len(z), 1))
        learned = grid["step_per_scale"] is None
        step = scale * (self.tensors[f"{name}.act_step"].astype(float) if learned else grid["step_per_scale"])
        codes = self.nearest_codes(z / np.where(step == 0, 1, step), grid)
        return level_of(codes, grid) * step + offset

    def _weight(self, name: str) -> Any:
        """The matrix `name` (rows, columns) as it is multiplied; of two branches, the wide and the narrow one."""
        form = self.formats[name]
        weight, own = form["weight"], {key.removeprefix(f"{name}."): t for key, t in self.tensors.items()}
        if weight == "int8":
            return own["codes"] * own["scale"].astype(float)
        if weight == "bf16-2:4":
            return spread(own["weight"], own["kept"], 1)
        if isinstance(weight, str):
            return hadamard(own["weight"].astype(float), form["block_size"])
        columns = self._columns(name)
        if form["steps"] == "fp8":
            own["step"] = e4m3(own["step"]) / 256
        if form["narrow"] is None:
            return self._values(own, weight, columns)
        narrow = form["narrow"]
        wide_columns, narrow_columns = columns, columns
        if narrow["axis"] == "columns":
            wide_columns, narrow_columns = columns - narrow["width"], narrow["width"]
        branch = {"codes": own["narrow_codes"], "step": own["narrow_step"]}
        return self._values(own, weight, wide_columns), self._values(branch, narrow["weight"], narrow_columns)

    def _values(self, own: dict[str, Array], grid: Json, columns: int) -> Array:
        if grid["group"]:
            codes = unpack(own["codes"], grid["levels"], columns // 2)
            values = spread(level_of(codes, grid), own["kept"], grid["group"])
        else:
            values = level_of(unpack(own["codes"], grid["levels"], columns), grid)
        values = values * own["step"].astype(float)
        return values + own["offset"] if "offset" in own else values

    def _columns(self, name: str) -> int:
        """Inputs of the matrix `name`."""
        shape, part = self.shape, name.rpartition(".")[2]
        if part == "down":
            return int(shape["mlp_hidden"] or 256 * math.ceil(round(8 * shape["hidden"] / 3) / 256))
        return int(shape["heads"] * shape["head_dim"] if part == "o" else shape["hidden"])


def _with_defaults(form: Json) -> Json:
    form = _FORMAT_DEFAULTS | form
    form["act"] = form["act"] and _GRID_DEFAULTS | form["act"]
    if not isinstance(form["weight"], str):
        form["weight"] = _GRID_DEFAULTS | form["weight"]
    if form["narrow"] is not None:
        form["narrow"] = form["narrow"] | {"weight": _GRID_DEFAULTS | form["narrow"]["weight"]}
    return form


def _rms_norm(x: Array, gain: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * gain


def _rotated(x: Array, angles: Array) -> Array:
    """x (heads, tokens, width) with entry i rotated with entry i + width / 2, by angles (tokens, width / 2)."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
