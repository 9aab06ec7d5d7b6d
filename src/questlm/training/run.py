"""Training a run from its settings, and resuming one from its folder: the two functions that everything starts from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from questlm.config import DATA_PATHS, RunConfig, TrainConfig, to_yaml
from questlm.errors import CheckpointError, QuestError
from questlm.files import atomic_write
from questlm.parallel import Processes, connect, reporting_lost_peers
from questlm.progress import tell
from questlm.records import RunRecord
from questlm.terminal import command_text
from questlm.training.batches import choose_batches, keep_batches, require_training_memory
from questlm.training.budget import budget_text, chosen_text, require_short
from questlm.training.build import build_model, prepare_data, prepare_data_again
from questlm.training.checkpoint import latest_checkpoint
from questlm.training.clock import share_done
from questlm.training.context import RunContext
from questlm.training.counters import Counters
from questlm.training.device import pick_device, reporting_failed_gpu
from questlm.training.extension import require_same_budget
from questlm.training.initial import InitialModel, adopt_initial, adopt_shape, choose_tokenizer, find_initial
from questlm.training.loggers import require_loggers
from questlm.training.new_folder import begin_folder, require_free
from questlm.training.origin import Origin, continued, initial_located
from questlm.training.plugins import record_plugins, require_plugins
from questlm.training.run_folder import RunFolder
from questlm.training.same_settings import require_same_config
from questlm.training.start import choose_batch_again, start
from questlm.training.state import TrainingState

__all__ = ["resume", "train"]


def train(config: RunConfig, out: str | Path, longest: float | None = None) -> RunRecord:
    """Train a new run in the folder `out`. Of several processes each calls it.

    `out` must not exist, or be empty, or hold a run that ended before its first checkpoint. If training fails before
    its first checkpoint, the folder is removed again.

    Args:
        longest: refuse a budget in tokens that takes more seconds than this, estimated before the first step.

    Raises:
        ConfigError, DataError: bad settings or data, an unknown method or recipe, a model that does not fit the
            memory, or a budget that takes too long; nothing is written then.
        CheckpointError: the model to begin from is damaged; likewise.
        TrainingError: a non-finite loss, quantisation not in effect, an error of the GPU, or another process that
            ended.
        Interrupted: SIGINT or SIGTERM; the run is saved.
    """
    config = record_plugins(config)
    with _connected(config.train, Path(out)) as processes, ExitStack() as stack:
        folder = RunFolder(Path(processes.on_main(lambda: _free_folder(Path(out), config))))
        initial = processes.together(lambda: find_initial(config))
        asked = adopt_initial(config, initial)
        data, asked = processes.main_first(lambda: prepare_data(asked, choose_tokenizer(asked, initial)))
        chosen = choose_batches(asked, processes, pick_device(asked.train.device, processes))
        state = _new_state(RunContext.here(chosen, folder, data, processes, Path.cwd()), initial)
        state = choose_batch_again(state, asked)
        started = start(state)
        _say_what_is_to_come(state, started.step_seconds, asked)
        if longest is not None and not started.trainer.step.records:  # a recorded step is faster than what was timed
            require_short(state.run.config, started.step_seconds, longest)
        tokenizer = data.tokenizer.to_str() if data.tokenizer is not None else None
        origin = Origin.here(folder.path, data.data_hash)
        begun = begin_folder(folder, state.run.config, tokenizer, origin, data.chat_template)
        processes.on_main(lambda: stack.enter_context(begun))
        return started.trainer.train()


def resume(out: str | Path, config: RunConfig | None = None) -> RunRecord:
    """Continue the run in the folder `out` from its newest checkpoint, or from the start if it has none.

    Of a run that is finished already, the record is returned, and nothing is computed or written. The number of
    processes may be another than before. Of several processes each calls it.

    Args:
        config: settings to continue with; None: the run's own. They may differ in when to log, validate, save and
            where and how to compute, and in where the same data lie; in nothing else.

    Raises:
        CheckpointError: not a run folder, other settings, a plugin that is not loaded or has changed, or a damaged
            checkpoint.
    """
    folder = RunFolder(Path(out))
    saved = folder.read_config()
    require_plugins(saved, folder.path)
    started_in = folder.started_in(saved)
    chosen = _continued_settings(config, saved, folder, started_in)
    with _connected(chosen.train, folder.path) as processes, ExitStack() as lock:
        processes.on_main(lambda: lock.enter_context(folder.locked()))
        processes.on_main(folder.remove_leftovers)
        finished = processes.on_main(folder.is_finished)
        if finished and chosen.data == saved.data:
            return RunRecord.load(folder.path)
        data, chosen = processes.main_first(lambda: prepare_data_again(chosen, saved, started_in, folder))
        if finished:
            processes.on_main(lambda: _keep_data_settings(folder, saved, chosen))
            return RunRecord.load(folder.path)
        initial = processes.together(lambda: _initial_again(initial_located(chosen, started_in), folder))
        require_training_memory(chosen, processes, pick_device(chosen.train.device, processes))
        state = _new_state(RunContext.here(chosen, folder, data, processes, started_in), initial)
        state.restore()
        started = start(state)
        _say_what_is_to_come(state, started.step_seconds)
        processes.on_main(lambda: _keep_data_settings(folder, saved, chosen))
        return started.trainer.train()


@contextmanager
def _connected(train: TrainConfig, out: Path) -> Iterator[Processes]:
    """The processes that train, connected; alone, this one."""
    processes = Processes.from_environment()
    device = pick_device(train.device, processes)
    hint = f"continue from the last checkpoint with: {command_text('train', '--resume', out)}"
    with (
        reporting_failed_gpu(device, hint),
        reporting_lost_peers(processes, hint),
        connect(processes, device, train.timeout) as connected,
    ):
        yield connected


def _new_state(run: RunContext, initial: InitialModel | None) -> TrainingState:
    """The state that the run begins with; what there is to say of its data is said first."""
    for note in run.data.notes if run.processes.is_main else ():
        tell(note)
    if run.device.index is not None:  # where CUDA graphs are recorded; without a number it is that one already
        torch.cuda.set_device(run.device)
    counters = Counters(initial_weights=None if initial is None else initial.weights_hash())
    return TrainingState(run, build_model(run.config, initial, run.device), counters)


def _say_what_is_to_come(state: TrainingState, step_seconds: float, asked: RunConfig | None = None) -> None:
    """Print the chosen batch sizes, where `asked` left them open, and what the budget means on this machine."""
    config, is_main = state.run.config, state.run.processes.is_main
    if not is_main:
        return
    if asked is not None and (text := chosen_text(config, asked)):
        tell(text)
    tell(budget_text(config, step_seconds, share_done(state.run, state.counters)))


# -- a new run ---------------------------------------------------------------------------------------------------------


def _free_folder(out: Path, config: RunConfig) -> str:
    require_free(RunFolder(out))
    require_loggers(config.train.loggers)
    return str(out)


# -- a resumed run -----------------------------------------------------------------------------------------------------


def _continued_settings(config: RunConfig | None, saved: RunConfig, folder: RunFolder, started_in: Path) -> RunConfig:
    """The settings to resume with: those of the run, or `config` with what the run filled in when it began.

    Raises:
        CheckpointError: `config` would train another model than the run does.
    """
    if config is not None:
        if config.model.vocab_size is None:  # resolved from the tokenizer when the run began
            model = config.model.model_copy(update={"vocab_size": saved.model.vocab_size})
            config = config.model_copy(update={"model": model})
        if config.init_from is not None:  # likewise
            config = adopt_shape(config, saved.model, folder.path)
        config = keep_batches(config, saved)
        config = config.model_copy(update={"plugins": saved.plugins})  # recorded then, and required to be loaded now
    chosen = continued(config or saved, saved, started_in)
    alike = chosen.model_copy(update={"budget": saved.budget})
    require_same_config(saved.model_dump(mode="json"), alike, folder.config_file, DATA_PATHS)
    require_same_budget(folder, saved, chosen.budget)
    return chosen


def _initial_again(config: RunConfig, folder: RunFolder) -> InitialModel | None:
    """The model to begin from once more, for a run that was killed before its first checkpoint."""
    if latest_checkpoint(folder.checkpoints) is not None:
        return None
    try:
        initial = find_initial(config)
        if initial is not None:
            adopt_shape(config, initial.shape, initial.folder)
    except QuestError as problem:
        raise CheckpointError(f"{folder.path} has no checkpoint yet, so it must begin again, but {problem}") from None
    return initial


def _keep_data_settings(folder: RunFolder, saved: RunConfig, chosen: RunConfig) -> None:
    """Write where the data are now into the run's settings, for whoever reads them later."""
    if chosen.data != saved.data:
        atomic_write(folder.config_file, to_yaml(saved.model_copy(update={"data": chosen.data})))
