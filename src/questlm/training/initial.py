"""Weights to begin a run from: a Hugging Face folder of a plain Llama, or a run of ours. Nothing is ever unpickled.

Names, shapes and types of all weights are checked in the files' headers against the config before any memory is taken
on its word; then the weights are read one at a time, as float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from questlm.config import DATA_PATHS, ModelConfig, RunConfig
from questlm.config.hugging_face import model_config_from_hugging_face
from questlm.data import holds_text, load_tokenizer, tokenizer_size
from questlm.errors import CheckpointError, ConfigError, DataError, cleaned, quoted
from questlm.files import sha256_files, user_path
from questlm.json_files import read_json
from questlm.manifest import MANIFEST_NAME
from questlm.models import Llama, from_hugging_face
from questlm.training.checkpoint import verify_checkpoint, weight_files
from questlm.training.run_folder import RunFolder
from questlm.training.same_settings import require_same_config
from questlm.training.weight_files import HEAD, WeightPlace, find_weights, model_shapes, read_weight, require_weights

__all__ = ["InitialModel", "adopt_initial", "adopt_shape", "choose_tokenizer", "find_initial", "open_hugging_face"]

_WEIGHTS, _INDEX, _TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class InitialModel:
    """A model to begin from, whose headers have been checked.

    Attributes:
        folder: as the user gave it.
        shape: of the model.
        places: of each weight, by our name; of a tied head too where the folder holds one.
        tokenizer: path of its tokenizer.json, or None.
        end_of_text: the name of the token that ends a document, where a run's settings give one.
    """

    folder: Path
    shape: ModelConfig
    places: Mapping[str, WeightPlace]
    tokenizer: Path | None
    end_of_text: str | None = None

    @torch.no_grad()
    def copy_into(self, model: Llama) -> None:
        """Set all weights of `model`, a plain Llama of this shape.

        Raises:
            CheckpointError: a file that cannot be read, or a weight that is not finite.
            ConfigError: a tied head that is not the embedding.
        """
        for name, parameter in model.named_parameters():
            parameter.copy_(read_weight(self.places[name]))
        if self.shape.tied_head and HEAD in self.places:
            head = read_weight(self.places[HEAD])
            if not torch.equal(head, model.lm_head.weight.cpu()):
                raise ConfigError(f"{self.folder} says that its head is tied to its embedding, but holds another head")

    def weights_hash(self) -> str:
        """Hex SHA-256 of the file of weights; of several, of the list of their hashes as `sha256sum` prints it."""
        return sha256_files({file for place in self.places.values() for file in place.files})


def find_initial(config: RunConfig) -> InitialModel | None:
    """The model that `config.init_from` names, or None where it names none.

    Raises:
        ConfigError: not the folder of a model that can be trained here.
        CheckpointError: damaged or incomplete.
    """
    if config.init_from is None:
        return None
    folder = user_path(config.init_from)
    if not folder.is_dir():
        raise ConfigError(
            f"init_from {quoted(config.init_from, 200)} is not a folder; give a Hugging Face folder on this machine "
            "(config.json and safetensors) or a run folder"
        )
    if (folder / "config.yaml").is_file():
        return _from_run(folder)
    return open_hugging_face(folder)


def adopt_shape(config: RunConfig, shape: ModelConfig, source: Path) -> RunConfig:
    """`config` with the shape of the model in `source`.

    Raises:
        ConfigError: a setting under `model.` was given that says otherwise.
    """
    for name in sorted(config.model.model_fields_set):
        given, real = _effective(config.model, name), _effective(shape, name)
        if given != real and not (name == "vocab_size" and given is None):
            raise ConfigError(
                f"the settings say model.{name} = {quoted(given)}, but the model in {source} has {quoted(real)}; "
                f"leave model.{name} out, and a preset too (it sets the shape)"
            )
    return config.model_copy(update={"model": shape})


def adopt_initial(config: RunConfig, initial: InitialModel | None) -> RunConfig:
    """`config` of a new run with the shape of its initial model, and with that model's end-of-text token.

    Raises:
        ConfigError: a setting under `model.` was given that says otherwise.
    """
    if initial is None:
        return config
    config = adopt_shape(config, initial.shape, initial.folder)
    if config.data.end_of_text is None and config.data.tokenizer == "train":
        data = config.data.model_copy(update={"end_of_text": initial.end_of_text})
        config = config.model_copy(update={"data": data})
    return config


def choose_tokenizer(config: RunConfig, initial: InitialModel | None) -> Path | None:
    """The tokenizer that goes with the initial model: the one in the settings, else its own; None: none is needed.

    Raises:
        ConfigError: text to tokenise, and no tokenizer.
        DataError: a tokenizer with ids that the model does not know.
    """
    if initial is None:
        return None
    path = initial.tokenizer if config.data.tokenizer == "train" else user_path(config.data.tokenizer)
    if path is None:
        if holds_text(config.data):
            raise ConfigError(
                f"{initial.folder} has no {_TOKENIZER}, and a new tokenizer would not fit its weights; "
                "add --set data.tokenizer=PATH of the tokenizer.json that it was trained with"
            )
        return None
    entries, known = tokenizer_size(load_tokenizer(path)), initial.shape.vocab_size or 0
    if entries > known:
        raise DataError(
            f"the tokenizer {path} has ids up to {entries - 1}, but the vocabulary of the model in {initial.folder} "
            f"has {known} entries; use the tokenizer that it was trained with"
        )
    return path


def _effective(model: ModelConfig, name: str) -> Any:
    """A setting of the shape, with what None stands for."""
    derived = {"kv_heads": model.key_value_heads, "head_dim": model.head_width, "mlp_hidden": model.mlp_width}
    return derived.get(name, getattr(model, name))


# -- a run of ours -----------------------------------------------------------------------------------------------------


def _from_run(path: Path) -> InitialModel:
    """A run at its newest checkpoint; what its quantisers have learned is left behind."""
    run = RunFolder(path)
    config, checkpoint = run.read_config(), run.latest_checkpoint()
    require_same_config(verify_checkpoint(checkpoint).config, config, checkpoint, DATA_PATHS)
    expected = model_shapes(config.model)
    places = find_weights(weight_files(checkpoint), sharded=True)
    for name in places:
        if name.endswith((".input_norm.weight", ".output_scale")):
            raise ConfigError(
                f"{path} holds {name}, without which its weights are another model; a run cannot begin from a run of "
                f"{config.quant.method}, only continue it with --resume"
            )
    places = {name: place for name, place in places.items() if name in expected}
    require_weights(places, expected, path)
    tokenizer = run.tokenizer_file if run.tokenizer_file.is_file() else None
    return InitialModel(path, config.model, places, tokenizer, config.data.end_of_text)


# -- a Hugging Face folder ---------------------------------------------------------------------------------------------


def open_hugging_face(folder: Path) -> InitialModel:
    """The model in a Hugging Face folder, with its headers checked.

    Raises:
        ConfigError: an adapter, a packed model, or a model of another kind than ours.
        CheckpointError: damaged or incomplete.
    """
    if (folder / "adapter_config.json").exists():
        raise ConfigError(f"{folder} holds an adapter, not a model; merge it into its model and give that folder")
    config = read_json(folder / "config.json", ConfigError)
    if not isinstance(config, dict):
        raise ConfigError(f"{folder / 'config.json'} holds a {type(config).__name__}, not an object")
    if config.get("format") == "questlm-artifact" or (folder / MANIFEST_NAME).exists():
        raise ConfigError(
            f"{folder} is a packed model, whose codes are not the weights to train; give the run folder it came from"
        )
    shape = _shape(config, folder / "config.json")
    places = _our_names(find_weights(_weight_files(folder)), folder)
    require_weights(places, model_shapes(shape), folder)
    tokenizer = folder / _TOKENIZER
    return InitialModel(folder, shape, places, tokenizer if tokenizer.is_file() else None)


def _shape(config: Mapping[str, Any], path: Path) -> ModelConfig:
    try:
        return model_config_from_hugging_face(config)
    except (ArithmeticError, ConfigError) as problem:
        raise ConfigError(f"{path} cannot be used: {cleaned(problem, 300)}") from None


def _our_names(theirs: Mapping[str, WeightPlace], folder: Path) -> dict[str, WeightPlace]:
    try:
        places = from_hugging_face(theirs)
    except ConfigError as problem:
        raise ConfigError(f"{folder} cannot be used: {cleaned(problem, 300)}") from None
    if HEAD not in theirs:
        places.pop(HEAD, None)  # the embedding's place: right where the head is tied, a guess where it is not
    return places


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        return _shards(folder, read_json(folder / _INDEX, CheckpointError))
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise ConfigError(
            f"{folder} has its weights in {pickled[0]}, a format that can run code when read, so it is not opened; "
            f"convert it to {_WEIGHTS} (save_pretrained of transformers)"
        )
    raise CheckpointError(f"{folder} holds neither {_WEIGHTS} nor {_INDEX}; it is no whole Hugging Face folder")


def _shards(folder: Path, index: Any) -> list[Path]:
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise CheckpointError(f"{folder / _INDEX} lists no files of weights; it is damaged")
    for name in sorted(set(named.values())):
        if name != Path(name).name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / _INDEX} names {quoted(name)}, which is no safetensors file in its folder; "
                f"refusing to read it"
            )
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing, though {_INDEX} lists it; fetch the whole model")
    return [folder / name for name in sorted(set(named.values()))]
