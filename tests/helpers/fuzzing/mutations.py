"""Seeded mutations of values, texts, bytes and safetensors. Each takes a `random.Random` and is decided by it alone."""

from __future__ import annotations

import copy
import json
import math
import random
import string
import struct
from collections.abc import Callable
from typing import Any

__all__ = ["mutated_bytes", "mutated_json", "mutated_tensors", "mutated_text", "mutated_value"]

_NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 5, 7, 8, 16, 63, 255, 256, 257, 65_535, 65_536, 10**6, 5 * 10**6, 2**31 - 1, 2**31, 2**32 - 1,
    2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**18, 10**30, 10**400, 0.0, -0.0, 0.5, 1.5, -0.1, 1e-320,
    1e-300, 1e-40, 1e38, 1e39, 1e300, math.inf, -math.inf, math.nan,
)  # fmt: skip
_TEXTS: tuple[str, ...] = (
    "", " ", "x", "0", "1e9", "null", "true", "nan", "a" * 5_000, "9" * 5_000, "\x1b[31mred\x1b[0m", "\u202egnp.exe",
    "a\nb", "\0", "\ud800", "é", "\N{PILE OF POO}" * 40, "../secret", "/dev/zero", "%s%n", "{}", "ternary", "int",
    "fp4", "quest", "float32", "bf16", "bf16-2:4", "cuda", "hf:x", "<|endoftext|>",
)  # fmt: skip


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def _anything(draw: random.Random) -> Any:
    return draw.choice(
        (
            lambda: draw.choice(_NUMBERS),
            lambda: draw.choice(_NUMBERS),
            lambda: draw.choice(_TEXTS),
            lambda: draw.choice((None, True, False)),
            lambda: draw.choice(([], {}, [0], [[]], {"a": 1}, [None] * 3, {"": 0}, {"a\x1b[31m\u202e": {}})),
            lambda: _deep(draw.choice((3, 60, 300))),
            lambda: [draw.choice(_NUMBERS) for _ in range(draw.choice((2, 1000)))],
        )
    )()


# -- values: what JSON and YAML hold -----------------------------------------------------------------------------------


def mutated_value(draw: random.Random, value: Any) -> tuple[Any, str]:
    """A copy of a tree of dictionaries and lists with one place changed, and in words what was."""
    box = [copy.deepcopy(value)]
    parent, key = draw.choice(_places(box))
    action = draw.choice(_ACTIONS)
    path = str(key)[:40]
    action(draw, parent, key, box)
    return box[0], f"{action.__name__.strip('_')} at {path!r}"


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `tree`; the first of many equal entries of a list stand for all of them."""
    found: list[tuple[Any, Any]] = []
    left = [tree]
    while left:
        item = left.pop()
        pairs = item.items() if isinstance(item, dict) else enumerate(item[:20])
        for key, child in pairs:
            found.append((item, key))
            if isinstance(child, dict | list):
                left.append(child)
    return found


def _replace(draw: random.Random, parent: Any, key: Any, _: list[Any]) -> None:
    parent[key] = _anything(draw)


def _tweak(draw: random.Random, parent: Any, key: Any, _: list[Any]) -> None:
    old = parent[key]
    if isinstance(old, bool) or old is None:
        parent[key] = not old
    elif isinstance(old, int):
        parent[key] = draw.choice((old + 1, old - 1, -old, old * 2, old // 2, old * 10**6, old + 10**400))
    elif isinstance(old, float):
        parent[key] = draw.choice((old * 1.0001, -old, old * 1e6, old * 1e-6, old * 1e200, int(min(abs(old), 1e9))))
    elif isinstance(old, str):
        parent[key] = mutated_text(draw, old)[0]
    elif isinstance(old, list):
        parent[key] = draw.choice((old * 2, old[:-1], old[::-1], old[1:], [*old, *old[:1]], old * 50))
    else:
        parent[key] = draw.choice((list(old), [list(pair) for pair in old.items()], {}, {**old, "surplus": 1}))


def _retype(draw: random.Random, parent: Any, key: Any, _: list[Any]) -> None:
    old = parent[key]
    wraps: list[Callable[[], Any]] = [lambda: str(old), lambda: [old], lambda: {"value": old}, lambda: {str(old): old}]
    parent[key] = draw.choice(wraps)()


def _remove(_: random.Random, parent: Any, key: Any, __: list[Any]) -> None:
    if not isinstance(parent, list) or len(parent) > 1:
        del parent[key]
    else:
        parent[key] = None


def _rename(draw: random.Random, parent: Any, key: Any, _: list[Any]) -> None:
    if isinstance(parent, dict):
        parent[draw.choice((mutated_text(draw, str(key))[0], draw.choice(_TEXTS)))] = parent.pop(key)
    else:
        parent.append(parent[key])


def _add(draw: random.Random, parent: Any, _key: Any, __: list[Any]) -> None:
    if isinstance(parent, dict):
        parent[draw.choice(_TEXTS)] = _anything(draw)
    else:
        parent.append(_anything(draw))


def _transplant(draw: random.Random, parent: Any, key: Any, box: list[Any]) -> None:
    """Put what stands elsewhere here."""
    other, name = draw.choice(_places(box))
    parent[key] = copy.deepcopy(other[name])


_ACTIONS: tuple[Callable[[random.Random, Any, Any, list[Any]], None], ...] = (
    _replace, _replace, _replace, _tweak, _tweak, _retype, _remove, _rename, _add, _transplant,
)  # fmt: skip


# -- text --------------------------------------------------------------------------------------------------------------


def mutated_text(draw: random.Random, text: str) -> tuple[str, str]:
    """A text with a small change, and in words what was done."""
    at = draw.randrange(len(text) + 1)
    to = min(len(text), at + draw.choice((1, 1, 2, 8, 40)))
    action = draw.choice(("insert", "insert", "delete", "repeat", "replace", "case", "swap", "cut"))
    piece = draw.choice((*_TEXTS, *string.punctuation, "\t", "\r\n", "\n  ", ": ", "- ", "*a", "&a ", "!!float "))
    if action == "insert":
        text = text[:at] + piece + text[at:]
    elif action == "delete":
        text = text[:at] + text[to:]
    elif action == "repeat":
        text = text[:to] + text[at:to] * draw.choice((1, 3, 200)) + text[to:]
    elif action == "replace":
        text = text[:at] + piece + text[to:]
    elif action == "case":
        text = text[:at] + text[at:to].swapcase() + text[to:]
    elif action == "swap":
        text = text[:at] + text[to:] + text[at:to]
    else:
        text = text[:at]
    return text, f"{action} {at}"


def mutated_json(draw: random.Random, text: str) -> tuple[bytes, str]:
    """JSON with one to three values changed; now and then the text itself, or it is no JSON at all."""
    kind = draw.random()
    if kind < 0.03:
        return draw.choice(_NO_JSON), "no JSON"
    if kind < 0.15:
        changed, what = mutated_text(draw, text)
        return changed.encode(errors="replace"), f"text: {what}"
    if kind < 0.2:
        return mutated_bytes(draw, text.encode())
    value, done = json.loads(text), []
    for _ in range(draw.choice((1, 1, 1, 1, 2, 3))):
        value, what = mutated_value(draw, value)
        done.append(what)
    return json.dumps(value).encode(), "; ".join(done)


_NO_JSON = (
    b"", b"null", b"[]", b"{}", b"0", b'"x"', b"NaN", b"9" * 5000, b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\x00",
    b'{"a": 1, "a": 2}', b"\xef\xbb\xbf{}", b"[0" + b",0" * 300_000 + b"]", b"\0" * 64, b'"\\ud800"', b"[1e999]",
)  # fmt: skip


# -- bytes -------------------------------------------------------------------------------------------------------------


def mutated_bytes(draw: random.Random, data: bytes) -> tuple[bytes, str]:
    """Bytes with one small damage, and in words what it is."""
    at = draw.randrange(len(data) + 1)
    to = min(len(data), at + draw.choice((1, 1, 2, 4, 8, 64, 1024)))
    action = draw.choice(("flip", "flip", "flip", "set", "insert", "delete", "repeat", "zero", "cut", "append", "move"))
    if action == "flip" and data:
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 4, 32))):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(changed), "flip"
    if action == "set":
        number = draw.choice(
            (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
        )
        width = draw.choice((1, 2, 4, 8))
        piece = (number % 256**width).to_bytes(width, draw.choice(("little", "big")))
        return data[:at] + piece + data[at + width :], f"set {at}"
    if action == "insert":
        return data[:at] + draw.randbytes(draw.choice((1, 4, 300))) + data[at:], f"insert {at}"
    if action == "delete":
        return data[:at] + data[to:], f"delete {at}"
    if action == "repeat":
        return data[:to] + data[at:to] * draw.choice((1, 10)) + data[to:], f"repeat {at}"
    if action == "zero":
        return data[:at] + bytes(to - at) + data[to:], f"zero {at}"
    if action == "cut":
        return data[:at], f"cut {at}"
    if action == "append":
        return data + draw.randbytes(draw.choice((1, 7, 1000))), "append"
    return data[:at] + data[to:] + data[at:to], f"move {at}"


# -- safetensors -------------------------------------------------------------------------------------------------------

_DTYPES = ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "I16", "F16", "BF16", "I32", "F32", "F64", "I64", "U64", "Q9")
_FLOATS = {  # special values as bytes, little-endian
    "F32": tuple(struct.pack("<f", x) for x in (math.nan, math.inf, -math.inf, 3.4e38, -1.0, 1e-45, 0.0)),
    "BF16": (b"\xc0\x7f", b"\x80\x7f", b"\x80\xff", b"\x7f\x7f", b"\x80\xbf", b"\1\0", b"\0\0"),
    "F16": (b"\0\x7e", b"\0\x7c", b"\0\xfc", b"\xff\x7b", b"\0\xbc", b"\1\0", b"\0\0"),
    "F64": (b"\0" * 6 + b"\xf8\x7f", b"\0" * 6 + b"\xf0\x7f", b"\xff" * 6 + b"\xef\x7f", b"\0" * 8),
    "I8": (b"\x80", b"\x7f", b"\0"),
}  # fmt: skip


def mutated_tensors(draw: random.Random, data: bytes) -> tuple[bytes, str]:
    """A safetensors file with another header, other values in a tensor, or damaged bytes."""
    kind = draw.random()
    if kind < 0.1:
        return mutated_bytes(draw, data)
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:end]), bytearray(data[end:])
    if kind < 0.45:
        text, what = mutated_json(draw, json.dumps(header))
        return _with_header(draw, text, body), f"header: {what}"
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    if kind < 0.6:
        what = _lie(draw, header, name, draw.choice(names))
        return _with_header(draw, json.dumps(header).encode(), body), f"{what} of {name}"
    what = _other_values(draw, header[name], body)
    return _with_header(draw, json.dumps(header).encode(), body), f"{what} in {name}"


def _with_header(draw: random.Random, text: bytes, body: bytes | bytearray) -> bytes:
    text += b" " * (-len(text) % 8 if draw.random() < 0.9 else draw.randrange(8))
    return len(text).to_bytes(8, "little") + text + bytes(body)


def _lie(draw: random.Random, header: dict[str, Any], name: str, other: str) -> str:
    """Let the header say something plausible and wrong about a tensor."""
    entry = header[name]
    action = draw.choice(("dtype", "shape", "transpose", "exchange", "rename", "drop", "add", "overlap"))
    if action == "dtype":
        entry["dtype"] = draw.choice(_DTYPES)
    elif action == "shape" and entry["shape"]:
        place = draw.randrange(len(entry["shape"]))
        entry["shape"][place] = draw.choice((0, 1, -1, 2**31, 2**62, 2**64, entry["shape"][place] + 1))
    elif action == "transpose":
        entry["shape"] = draw.choice((entry["shape"][::-1], [math.prod(entry["shape"])], [*entry["shape"], 1], []))
    elif action == "exchange":
        header[name], header[other] = header[other], header[name]
    elif action == "rename":
        header[mutated_text(draw, name)[0]] = header.pop(name)
    elif action == "drop":
        del header[name]
    elif action == "add":
        header[name + ".copy"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    else:
        entry["data_offsets"] = header[other]["data_offsets"]
    return action


def _other_values(draw: random.Random, entry: dict[str, Any], body: bytearray) -> str:
    start, stop = entry["data_offsets"]
    special = _FLOATS.get(entry["dtype"])
    if start == stop:
        return "nothing"
    if special and draw.random() < 0.6:
        value = draw.choice(special)
        count = (stop - start) // len(value)
        for place in range(count) if draw.random() < 0.2 else [draw.randrange(count)]:
            at = start + place * len(value)
            body[at : at + len(value)] = value
        return f"value {value.hex()}"
    if draw.random() < 0.3:
        body[start:stop] = draw.choice((bytes(stop - start), b"\xff" * (stop - start), draw.randbytes(stop - start)))
        return "all values"
    for _ in range(draw.choice((1, 1, 4))):
        body[draw.randrange(start, stop)] ^= 1 << draw.randrange(8)
    return "flipped bits"
