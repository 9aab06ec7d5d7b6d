"""What a run is made of: its model, from its settings, an initial model or a checkpoint; and its data, as tokens."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from questlm.config import DATA_PATHS, RunConfig
from questlm.data import PreparedData, prepare, require_window
from questlm.errors import CheckpointError, ConfigError, quoted
from questlm.memory import host_memory, require_memory
from questlm.models import Llama
from questlm.quant import prepare as quantize_layers
from questlm.scaling.memory import loading_memory
from questlm.training.checkpoint import fill_tensors, model_tensors, verify_checkpoint
from questlm.training.counters import read_state
from questlm.training.initial import InitialModel
from questlm.training.origin import Origin, located
from questlm.training.plugins import require_plugins
from questlm.training.run_folder import RunFolder
from questlm.training.same_settings import require_same_config

__all__ = ["LoadedRun", "build_model", "load_run", "other_data", "prepare_data", "prepare_data_again"]


def build_model(config: RunConfig, initial: InitialModel | None = None, device: torch.device | None = None) -> Llama:
    """The model of a run with the weights of `initial`, or else drawn from its seed, quantised as the settings say.

    Args:
        device: where it is built; None: torch's default. With a device the weights are the same on each, drawn or read
            on the CPU one after the other, so that its memory never holds more than one.

    Raises:
        CheckpointError, ConfigError: the initial weights cannot be used.
    """
    with nullcontext() if device is None else device:
        model = Llama(config.model)
    if initial is None:
        model.initialize(config.seed, None if device is None else "cpu")
    else:  # before quantising, because some quantisers begin from the weights
        initial.copy_into(model)
    return quantize_layers(model, config.quant)


class LoadedRun(NamedTuple):
    """A run at its newest checkpoint, whose folder is `checkpoint`."""

    model: Llama
    config: RunConfig
    checkpoint: Path
    step: int
    tokens: int


def load_run(path: Path) -> LoadedRun:
    """The model of a run folder at its newest checkpoint, and its settings. For packing and evaluating.

    Raises:
        CheckpointError: not a run folder, no checkpoint, a damaged one, or a plugin that is not loaded or has changed.
        ConfigError: the model does not fit the memory.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    require_plugins(config, path)
    checkpoint = folder.latest_checkpoint()
    require_memory(
        loading_memory(config.model), host_memory(), f"the model of {path}", "use a machine that has more memory"
    )
    verify_checkpoint(checkpoint)
    state = read_state(checkpoint)
    require_same_config(state.config, config, checkpoint, DATA_PATHS)
    model = build_model(config)
    fill_tensors(checkpoint, "model", model_tensors(model))
    model.load_state_dict(model.state_dict())  # by which quantisers notice what they now hold
    return LoadedRun(model, config, checkpoint, state.progress.step, state.progress.tokens)


# -- data --------------------------------------------------------------------------------------------------------------


def prepare_data(config: RunConfig, tokenizer: Path | None = None) -> tuple[PreparedData, RunConfig]:
    """Tokens for the run, and its settings with the size of the vocabulary and of a fetched corpus filled in."""
    if config.data.source.startswith("hf:") and config.data.max_tokens is None:
        tokens = config.token_budget()
        if tokens is None:
            raise ConfigError(
                "a budget in seconds does not say how much of a data set to fetch; add --set data.max_tokens=N"
            )
        # In the settings, so that whoever evaluates this run later reads the same tokens.
        config = config.model_copy(update={"data": config.data.model_copy(update={"max_tokens": tokens})})
    source = config.data if tokenizer is None else config.data.model_copy(update={"tokenizer": str(tokenizer)})
    data = prepare(source, config.model.vocab_size)
    if data.end_of_text_name is not None:  # in the settings, because the run's copy of the tokenizer does not say it
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"end_of_text": data.end_of_text_name})}
        )
    require_window(data.train, config.train.seq_len, "training")
    require_window(data.val, 1, "validation")
    model = config.model.model_copy(update={"vocab_size": config.model.vocab_size or data.vocab_size})
    return data, config.model_copy(update={"model": model})


def prepare_data_again(
    config: RunConfig, saved: RunConfig, started_in: Path, folder: RunFolder
) -> tuple[PreparedData, RunConfig]:
    """Prepare the data of a run again, to resume it, and return what `prepare_data` returns.

    Args:
        config, saved: settings as they are now, and as the run folder has them.
        started_in: the folder that relative paths in the settings start from.

    Raises:
        CheckpointError: the run was trained on other tokens.
    """
    tokenizer = folder.tokenizer_file if _has_own_tokenizer(config, saved, folder) else None
    reachable = config.model_copy(update={"data": located(config.data, started_in)})
    data, resolved = prepare_data(reachable, tokenizer)
    if Origin.read(folder.path).data_hash not in (None, data.data_hash):
        raise other_data(folder.path, config)
    filled = {"max_tokens": resolved.data.max_tokens, "end_of_text": resolved.data.end_of_text}
    return data, resolved.model_copy(update={"data": config.data.model_copy(update=filled)})


def _has_own_tokenizer(config: RunConfig, saved: RunConfig, folder: RunFolder) -> bool:
    """Whether the run came with a tokenizer, of which it keeps a copy: the file that it was read from may be gone."""
    trained_here = config.init_from is None and config.data.tokenizer == "train"
    return not trained_here and config.data.tokenizer == saved.data.tokenizer and folder.tokenizer_file.is_file()


def other_data(trained: Path, config: RunConfig) -> CheckpointError:
    """The error for a run or checkpoint that was trained on other data than those at hand."""
    return CheckpointError(
        f"{trained} was trained on other data than {quoted(config.data.source)} holds now, or another version prepared "
        "them; resume with the data and the version as they were, or begin a new run with --init-from"
    )
