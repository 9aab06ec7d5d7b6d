"""What a pretrained model loses when its weights and inputs are rounded and nothing is trained.

    python studies/fine-tuning/round_to_nearest.py smollm2 --text val.txt.xz --bytes 20000

Measures bits per byte on the first bytes of a text, up to the end of a line: of the model as it is, and rounded to
QuEST's grids at each width. Writes `round_to_nearest.json` beside this script, row by row, and goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import lzma
import tempfile
import time
from pathlib import Path
from typing import Any

import questlm
from questlm.json_files import write_json
from questlm.records import package_versions
from questlm.training.initial import open_hugging_face

OUT = Path(__file__).with_suffix(".json")
ROWS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "W8A8": {"weight_bits": 8, "act_bits": 8},
    "W4A16": {"weight_bits": 4, "act_bits": 16},
    "W4A4": {"weight_bits": 4, "act_bits": 4},
    "W2A16": {"weight_bits": 2, "act_bits": 16},
    "W1A16": {"weight_bits": 1, "act_bits": 16},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a Hugging Face Llama with its tokenizer")
    parser.add_argument("--text", type=Path, required=True, help="plain, or .xz")
    parser.add_argument("--bytes", type=int, default=20_000)
    parser.add_argument("--rows", default=",".join(ROWS))
    arguments = parser.parse_args()
    text = first_bytes(arguments.text, arguments.bytes)
    result = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {"rows": {}}
    result |= {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": arguments.model.name,
        "text": {"name": arguments.text.name, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()},
        "versions": package_versions(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "text.txt"
        source.write_bytes(text)
        for name in [name for name in arguments.rows.split(",") if name not in result["rows"]]:
            print(f"measuring {name} ...", flush=True)
            result["rows"][name] = measure(arguments.model, source, ROWS[name])
            write_json(OUT, result)
            print(f"{name}: {result['rows'][name]}", flush=True)


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a text, up to the end of a line."""
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        content = file.read(count)
    return content[: content.rfind(b"\n") + 1]


def measure(folder: Path, text: Path, spec: dict[str, Any]) -> dict[str, float]:
    """Loss in nats a token and bits per byte of the model, rounded by `spec`."""
    initial = open_hugging_face(folder)
    model = questlm.Llama(initial.shape)
    initial.copy_into(model)
    if spec:
        questlm.prepare(model, questlm.QuantSpec(**spec, embeddings="bf16"))
    begun = time.perf_counter()
    model.eval().requires_grad_(False)
    found = questlm.evaluate(model, text, tokenizer=folder / "tokenizer.json")
    seconds = round(time.perf_counter() - begun, 1)
    return {"loss": found.loss, "bits_per_byte": found.bits_per_byte or 0.0, "seconds": seconds}


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown, and what each loses."""
    rows, begin = result["rows"], result["rows"]["as it is"]["bits_per_byte"]
    lines = ["| weights and inputs | bits per byte | over the original |", "|---|---|---|"]
    for name in (name for name in ROWS if name in rows):
        found = rows[name]["bits_per_byte"]
        lines.append(f"| {name} | {found:.3f} | {'' if name == 'as it is' else f'{found - begin:+.3f}'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
