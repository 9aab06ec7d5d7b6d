"""Models to go on from: run folders with their checkpoints, and Hugging Face folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from helpers.fuzzing.folders import Folder, rewrite_manifest
from helpers.fuzzing.formats.artifacts import redigest
from helpers.fuzzing.formats.base import FolderFormat, require
from helpers.fuzzing.formats.data import DOCUMENTS
from helpers.fuzzing.mutations import mutated_bytes, mutated_json, mutated_tensors
from questlm.config import ModelConfig, RunConfig, load_config
from questlm.config.hugging_face import hugging_face_config
from questlm.data import train_tokenizer
from questlm.manifest import MANIFEST_NAME
from questlm.models import Llama
from questlm.models.names import to_hugging_face
from questlm.training import load_run, resume, train
from questlm.training.initial import choose_tokenizer, find_initial

__all__ = ["Checkpoints", "HuggingFace"]


class Checkpoints(FolderFormat):
    """A run folder: state, tensors and manifest of its newest checkpoint, settings and tokenizer. Some are resumed."""

    name = "checkpoint"
    _resumed = False

    def build(self, samples: Path) -> None:
        (samples / "text.txt").write_text("\n<|endoftext|>\n".join(DOCUMENTS))
        sections: dict[str, Any] = {
            "model": {"layers": 1, "hidden": 32, "heads": 2, "mlp_hidden": 64},
            "quant": {"method": "lsq", "weight_bits": 4, "act_bits": 4},
            "data": {"source": str(samples / "text.txt"), "vocab_size": 300, "val_fraction": 0.1},
            "train": {"seq_len": 32, "batch_size": 2, "checkpoint_every": 2, "log_every": 1, "keep_checkpoints": 1},
            "budget": {"tokens": 4 * 2 * 32},
        }
        sections["data"]["cache_dir"] = str(samples / "cache")
        train(load_config(flags=sections), samples / "run")

    def open(self, samples: Path, scratch: Path) -> None:
        super().open(samples, scratch)
        manifest = next(n for n in self.folder.files if n.startswith("run/checkpoints/") and n.endswith(MANIFEST_NAME))
        self._checkpoint = manifest.removesuffix(MANIFEST_NAME)

    def mutate(self, draw: random.Random) -> str:
        self._resumed = draw.random() < 0.05
        files = ("state.json", "state.json", "state.json", "model.safetensors", "optimizer.safetensors", MANIFEST_NAME)
        name = draw.choice([*(self._checkpoint + file for file in files), "run/config.yaml", "run/record.json"])
        folder, old = self.folder.path / self._checkpoint, self.folder.files[name]
        if draw.random() < 0.04:
            return self.folder.displace(draw, name)
        if name.endswith(".safetensors"):
            data, what = mutated_tensors(draw, old)
        elif name.endswith(".yaml"):
            data, what = mutated_bytes(draw, old)
        else:
            data, what = mutated_json(draw, old.decode())
        self.folder.write(name, data)
        if name.endswith(MANIFEST_NAME):
            what += redigest(draw, folder)
        elif name.startswith(self._checkpoint) and draw.random() < 0.95:
            rewrite_manifest(folder)
            what += ", with a new manifest"
        return f"{name.removeprefix('run/')}: {what}{', resumed' if self._resumed else ''}"

    def read(self) -> None:
        run = self.folder.path / "run"
        if not self._resumed:
            loaded = load_run(run)
            require(isinstance(loaded.step, int) and isinstance(loaded.tokens, int), "progress that is no number")
            return
        record = resume(run)
        final = record.final or {}
        require(final["loss"] is not None and 0 < final["loss"] < 100, f"the final loss {final['loss']}")


class HuggingFace(FolderFormat):
    """Hugging Face folders, with one file of weights and with several, to begin from and their weights copied."""

    name = "hugging-face"
    _chosen = ""

    def build(self, samples: Path) -> None:
        shape = ModelConfig(layers=1, hidden=16, heads=2, mlp_hidden=32, vocab_size=320)
        model = Llama(shape).initialize(0)
        weights = {name: weight.detach() for name, weight in to_hugging_face(model.state_dict()).items()}
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}
        config |= hugging_face_config(shape) | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
        names = sorted(weights)
        files = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
        for folder, dtype in (("one", torch.bfloat16), ("several", torch.float32)):
            (samples / folder).mkdir()
            (samples / folder / "config.json").write_text(json.dumps(config))
            train_tokenizer(DOCUMENTS, 300).save(str(samples / folder / "tokenizer.json"))
            parts = {"model.safetensors": names} if folder == "one" else files
            for file, part in parts.items():
                save_file({name: weights[name].to(dtype).contiguous() for name in part}, samples / folder / file)
        index = {"weight_map": {name: file for file, part in files.items() for name in part}, "metadata": {}}
        (samples / "several" / "model.safetensors.index.json").write_text(json.dumps(index))

    def open(self, samples: Path, scratch: Path) -> None:
        self.folder = Folder(samples, scratch / "it")

    def mutate(self, draw: random.Random) -> str:
        self._chosen = draw.choice(("one", "several"))
        names = [name for name in sorted(self.folder.files) if name.startswith(f"{self._chosen}/")]
        name = draw.choice([*names, *(name for name in names if not name.endswith("tokenizer.json"))])
        old = self.folder.files[name]
        if draw.random() < 0.04:
            return self.folder.displace(draw, name)
        data, what = mutated_tensors(draw, old) if name.endswith("safetensors") else mutated_json(draw, old.decode())
        self.folder.write(name, data)
        return f"{name}: {what}"

    def read(self) -> None:
        config = RunConfig(init_from=str(self.folder.path / self._chosen))
        initial = find_initial(config)
        require(initial is not None, "there is no model")
        assert initial is not None
        choose_tokenizer(config, initial)
        model = Llama(initial.shape)
        initial.copy_into(model)
        initial.weights_hash()
        require(all(bool(torch.isfinite(p).all()) for p in model.parameters()), "weights that are not finite")
        with torch.no_grad():
            model(torch.arange(4)[None] % (initial.shape.vocab_size or 1))
