"""The training loop: batches in, a run folder out.

The state of a run is the model, the optimizer, the loader's position and the counters in `Progress`. All of it is in
every checkpoint, and nothing else decides what comes next, so a run that is killed at any moment and resumed ends where
the uninterrupted one ends (bit for bit on a CPU, for budgets in tokens; a budget in seconds depends on the clock).

Several processes (torchrun) run this same code. Each takes its share of every batch; the first alone writes and speaks;
and all stop at the same step, because they look at one clock and tell each other of signals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from questlm.config import DATA_PATHS, RunConfig, TrainConfig, to_yaml
from questlm.data import PreparedData, WindowLoader, prepare, require_window
from questlm.errors import CheckpointError, ConfigError, DataError, QuestError, TrainingError, quoted
from questlm.evaluation import Evaluation, evaluate
from questlm.files import atomic_write
from questlm.models import Llama
from questlm.parallel import (
    Processes,
    checkpoint_activations,
    compile_blocks,
    connect,
    distribute,
    local_shard,
    pick_engine,
    reporting_lost_peers,
    whole,
)
from questlm.progress import progress, tell
from questlm.quant import StatefulQuantizer, cached_weights, set_quantization_strength
from questlm.records import RunRecord, package_versions
from questlm.terminal import command_text
from questlm.training.batches import choose_batch, choose_micro_batch, keep_batches, require_training_memory
from questlm.training.budget import budget_text, chosen_text, require_short
from questlm.training.checkpoint import (
    fill_tensors,
    latest_checkpoint,
    model_tensors,
    prune,
    verify_checkpoint,
    write_checkpoint,
)
from questlm.training.checks import check_quantization, compute_plainly
from questlm.training.compiling import compile_kernels, uncompiled, without_compiler_warnings
from questlm.training.device import autocast, device_name, peak_memory, pick_device, should_compile
from questlm.training.extension import require_same_budget
from questlm.training.initial import InitialModel, adopt_shape, choose_tokenizer, find_initial
from questlm.training.interrupt import Interrupt
from questlm.training.loggers import Log, open_loggers, require_loggers
from questlm.training.optim import Optimizers, make_optimizer
from questlm.training.origin import Origin, continued, initial_located, located
from questlm.training.plugins import record_plugins, require_plugins
from questlm.training.recipes import Moment, Recipe, active_recipes
from questlm.training.run_folder import RunFolder, build_model, require_same_config
from questlm.training.schedule import learning_rate
from questlm.training.state import CheckpointState, Progress, read_state
from questlm.training.step import TrainStep, should_record

__all__ = ["Interrupted", "Trainer", "resume", "train"]

_ALONE = Processes()
_STOPPING = "quest: the run stops after this step and is saved; Ctrl-C again leaves at once, without saving"


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop, and is saved
    """Training stopped on a signal, after saving. Carries the signal's number and the run folder."""

    def __init__(self, signal_number: int, run: Path) -> None:
        super().__init__(f"stopped by signal {signal_number}; continue with: {command_text('train', '--resume', run)}")
        self.signal_number, self.run = signal_number, run


def train(config: RunConfig, out: Path, longest: float | None = None) -> RunRecord:
    """Train a new run in the folder `out`. Of several processes each calls it.

    `out` must not exist, or be empty, or hold a run that ended before its first checkpoint. If training fails before
    its first checkpoint, the folder is removed again.

    Args:
        longest: refuse a budget in tokens that takes more seconds than this, estimated before the first step.

    Raises:
        ConfigError, DataError: bad settings or data, an unknown method or recipe, a model that does not fit the
            memory, or a budget that takes too long; nothing is written then.
        CheckpointError: the model to begin from is damaged; likewise.
        TrainingError: a non-finite loss, quantisation not in effect, or another process that ended.
        Interrupted: SIGINT or SIGTERM; the run is saved.
    """
    config = record_plugins(config)
    with _together(config.train, out) as ranks, ExitStack() as held:
        folder = RunFolder(Path(ranks.first(lambda: _fresh_folder(out, config))))
        initial = ranks.together(lambda: find_initial(config))
        if initial is not None:
            config = adopt_shape(config, initial.shape, initial.folder)
            if config.data.end_of_text is None and config.data.tokenizer == "train":
                config = config.model_copy(
                    update={"data": config.data.model_copy(update={"end_of_text": initial.end_of_text})}
                )
        data, config = ranks.main_first(lambda: _prepare_data(config, choose_tokenizer(config, initial)))
        asked = config
        config = choose_micro_batch(
            choose_batch(config, ranks.world_size), ranks, pick_device(config.train.device, ranks)
        )
        trainer = Trainer(config, folder, data, initial, ranks)
        trainer.prepare(asked)
        if longest is not None:
            trainer.require_short(longest)
        tokenizer = data.tokenizer.to_str() if data.tokenizer is not None else None
        origin = Origin.here(folder.path, data.data_hash)
        ranks.first(lambda: held.enter_context(folder.begun(trainer.config, tokenizer, origin)))
        return trainer.run()


def resume(out: Path, config: RunConfig | None = None) -> RunRecord:
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
    folder = RunFolder(out)
    saved = folder.read_config()
    require_plugins(saved, out)
    if config is not None and config.model.vocab_size is None:  # resolved from the tokenizer when the run began
        model = config.model.model_copy(update={"vocab_size": saved.model.vocab_size})
        config = config.model_copy(update={"model": model})
    if config is not None and config.init_from is not None:  # likewise
        config = adopt_shape(config, saved.model, folder.path)
    if config is not None:
        config = keep_batches(config, saved)
    started_in = folder.started_in(saved)
    chosen = continued(config or saved, saved, started_in)
    alike = chosen.model_copy(update={"budget": saved.budget})
    require_same_config(saved.model_dump(mode="json"), alike, folder.config_file, DATA_PATHS)
    require_same_budget(folder, saved, chosen.budget)
    with _together(chosen.train, out) as ranks, ExitStack() as lock:
        ranks.first(lambda: lock.enter_context(folder.locked()))
        ranks.first(folder.remove_leftovers)
        finished = ranks.first(folder.is_finished)
        if finished and chosen.data == saved.data:
            return RunRecord.load(out)
        data, chosen = ranks.main_first(lambda: _prepare_again(chosen, saved, started_in, folder))
        if finished:
            ranks.first(lambda: _keep_data_settings(folder, saved, chosen))
            return RunRecord.load(out)
        initial = ranks.together(lambda: _initial_again(initial_located(chosen, started_in), folder))
        require_training_memory(chosen, ranks, pick_device(chosen.train.device, ranks))
        trainer = Trainer(chosen, folder, data, initial, ranks)
        trainer.restore()
        trainer.prepare()
        ranks.first(lambda: _keep_data_settings(folder, saved, chosen))
        return trainer.run()


def _verify(checkpoint: Path) -> None:
    verify_checkpoint(checkpoint)  # its result is no JSON, which the first process could tell the others


@contextmanager
def _together(train: TrainConfig, out: Path) -> Iterator[Processes]:
    """The processes that train, connected; alone, this one."""
    ranks = Processes.from_environment()
    advice = f"continue from the last checkpoint with: {command_text('train', '--resume', out)}"
    with reporting_lost_peers(ranks, advice), connect(ranks, pick_device(train.device, ranks), train.timeout) as joined:
        yield joined


def _keep_data_settings(folder: RunFolder, saved: RunConfig, chosen: RunConfig) -> None:
    """Write where the data are now into the run's settings, for whoever reads them later."""
    if chosen.data != saved.data:
        atomic_write(folder.config_file, to_yaml(saved.model_copy(update={"data": chosen.data})))


def _fresh_folder(out: Path, config: RunConfig) -> str:
    RunFolder(out).require_free()
    require_loggers(config.train.loggers)
    return str(out)


def _prepare_again(
    config: RunConfig, saved: RunConfig, started_in: Path, folder: RunFolder
) -> tuple[PreparedData, RunConfig]:
    """As `_prepare_data`, from wherever the run was started; CheckpointError if the data are others than then."""
    tokenizer = folder.tokenizer_file if _has_own_tokenizer(config, saved, folder) else None
    reachable = config.model_copy(update={"data": located(config.data, started_in)})
    data, resolved = _prepare_data(reachable, tokenizer)
    if Origin.read(folder.path).data_hash not in (None, data.data_hash):
        raise _other_data(folder.path, config)
    filled = {"max_tokens": resolved.data.max_tokens, "end_of_text": resolved.data.end_of_text}
    return data, resolved.model_copy(update={"data": config.data.model_copy(update=filled)})


def _has_own_tokenizer(config: RunConfig, saved: RunConfig, folder: RunFolder) -> bool:
    """Whether the run came with a tokenizer, of which it keeps a copy: the file that it was read from may be gone."""
    trained_here = config.init_from is None and config.data.tokenizer == "train"
    return not trained_here and config.data.tokenizer == saved.data.tokenizer and folder.tokenizer_file.is_file()


def _other_data(trained: Path, config: RunConfig) -> CheckpointError:
    return CheckpointError(
        f"{trained} was trained on other data than {quoted(config.data.source)} holds now, or another version prepared "
        "them; resume with the data and the version as they were, or begin a new run with --init-from"
    )


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


def _prepare_data(config: RunConfig, tokenizer: Path | None = None) -> tuple[PreparedData, RunConfig]:
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


class Trainer:
    """One run: model, optimizer, loader and counters. `run` trains to the end of the budget."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        data: PreparedData,
        initial: InitialModel | None = None,
        ranks: Processes = _ALONE,
    ) -> None:
        self.config, self.folder, self.data, self.ranks = config, folder, data, ranks
        for note in data.notes if ranks.is_main else ():
            tell(note)
        train = config.train
        self.device = pick_device(train.device, ranks)
        if self.device.index is not None:  # where CUDA graphs are recorded; without a number it is that one already
            torch.cuda.set_device(self.device)
        self.engine = pick_engine(train.parallel, ranks)
        self.loader = self._loader()
        self.model: Llama = build_model(config, initial).to(self.device)  # whole, until `_distribute`
        self.optimizer: Optimizers
        self.recipes: list[Recipe]
        self.step: TrainStep
        self.state = Progress(initial_weights=initial.weights_hash() if initial is not None else None)
        self._step_seconds = 0.0  # of a step, estimated before the first
        self._restored: Path | None = None
        self._pending: list[Tensor] = []  # losses of steps whose value nobody has looked at yet
        self._grad_norm: Tensor = torch.zeros((), device=self.device)

    def _loader(self) -> WindowLoader:
        train, ranks = self.config.train, self.ranks
        batch_size = train.tokens_per_step // train.seq_len
        return WindowLoader(self.data.train, train.seq_len, batch_size, self.config.seed, ranks.rank, ranks.world_size)

    @without_compiler_warnings()
    def prepare(self, asked: RunConfig | None = None) -> None:
        """Compile what is compiled, check that quantisation is on, measure how fast it is, and say what is to come.

        Args:
            asked: the settings before batch sizes were chosen, of a new run; a batch chosen for a budget in seconds
                is made smaller here if that pays for few steps.
        """
        batch = self._first_micro_batch()
        set_quantization_strength(self.model, 1.0)  # what is checked is the whole of it, also half-way through
        self._initialize_quantizers(batch)
        if asked is not None and asked.train.batch_size is None and self.config.budget.seconds is not None:
            self._choose_batch_again(asked, self.config.budget.seconds)
            batch = self._first_micro_batch()
        expected = compute_plainly(self.model, self._plain_loss, batch)
        self._distribute()
        compile_kernels(self.model, self.step, self.engine, batch, self.device)
        checks = self.ranks.together(
            lambda: check_quantization(self.model, self.step.loss, batch, expected, self.step.weight_cache)
        )
        self.state.checks = self.state.checks or checks  # of a resumed run those of its beginning
        self._step_seconds = self._time_step(batch)
        if self.ranks.is_main:
            if asked is not None and (text := chosen_text(self.config, asked)):
                tell(text)
            tell(budget_text(self.config, self._step_seconds, self._share_done()))

    def require_short(self, longest: float) -> None:
        """Refuse a budget that takes more than `longest` seconds.

        Raises:
            ConfigError: it does. Not where steps are recorded as a CUDA graph, which makes them several times faster
                than the passes that were timed.
        """
        if not self.step.records:
            require_short(self.config, self._step_seconds, longest)

    def run(self) -> RunRecord:
        """Train until the budget is spent, validate on the whole split in float32, and return the record."""
        with ExitStack() as stack:
            loggers = self.config.train.loggers if self.ranks.is_main else ()
            log = open_loggers(loggers, self.folder.path, self.config.model_dump(mode="json"), stack)
            stack.enter_context(without_compiler_warnings())
            interrupt = stack.enter_context(Interrupt(_STOPPING if self.ranks.is_main else ""))
            with progress("training", 1.0, show=self.ranks.is_main) as update:
                self._loop(log, interrupt, update)
            self._save()
            if (number := self._stopped_by(interrupt)) is not None:
                raise Interrupted(number, self.folder.path)
        return self._finish()

    def _choose_batch_again(self, asked: RunConfig, seconds: float) -> None:
        """Make a batch that was chosen smaller, where `seconds` would pay for few steps of it."""
        inputs, targets = (part[:1] for part in self._first_micro_batch())
        took = [self._time(lambda: self._plain_loss(inputs, targets)[0].backward()) for _ in range(2)][-1]
        tokens = seconds / self.ranks.largest(took)[0] * inputs.numel() * self.ranks.world_size
        config = self.config.model_copy(update={"train": asked.train})
        self.config = choose_micro_batch(choose_batch(config, self.ranks.world_size, tokens), self.ranks, self.device)
        self.loader = self._loader()

    def _time_step(self, batch: tuple[Tensor, Tensor]) -> float:
        """Seconds of a step, from one pass over a micro-batch; the optimizer's part, which is short, is left out."""

        def work() -> None:
            with self.step.weight_cache():
                self.step.loss(*batch)[0].backward()

        passes = self.config.train.tokens_per_step / (batch[0].numel() * self.ranks.world_size)
        return self.ranks.largest(passes * self._time(work))[0]

    def _time(self, work: Callable[[], None]) -> float:
        """Seconds that a forward and a backward pass take; their gradients are dropped."""
        started = time.monotonic()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.monotonic() - started
        self.model.zero_grad(set_to_none=True)
        return seconds

    def restore(self) -> None:
        """Take up the newest checkpoint; a run killed before its first one starts over.

        Raises:
            CheckpointError: damaged, or made with other settings or data.
        """
        path = latest_checkpoint(self.folder.checkpoints)
        if path is None:
            return
        self.ranks.first(lambda: _verify(path))
        self.ranks.together(lambda: self._restore(path))

    def _restore(self, path: Path) -> None:
        state = read_state(path)
        require_same_config(state.config, self.config, path, DATA_PATHS)
        if state.data_hash != self.data.data_hash:
            raise _other_data(path, self.config)
        progress = state.progress
        if progress.tokens != progress.step * self.config.train.tokens_per_step:
            raise CheckpointError(
                f"{path} counts {progress.tokens} tokens in {progress.step} steps of "
                f"{self.config.train.tokens_per_step}; it is damaged"
            )
        fill_tensors(path, "model", model_tensors(self.model))
        self.model.load_state_dict(self.model.state_dict())  # by which quantisers notice what they now hold
        try:
            self.loader.load_state_dict(state.loader)
        except DataError as problem:
            raise CheckpointError(f"{path} does not fit this run: {problem}") from None
        self.state = progress
        self._restored = path

    def _distribute(self) -> None:
        """Share the model between the processes, and make what depends on how it is shared: compiled code, optimizer.

        Until here it was whole, because quantisers take their first steps from it, and the check what is right.
        """
        train = self.config.train
        checkpoint_activations(self.model, train.recompute)
        if should_compile(train, self.device):
            compile_blocks(self.model)
        module = distribute(self.model, self.engine, self.device)
        self.optimizer = make_optimizer(self.model, train, self.ranks)
        self.recipes = active_recipes(train, self.model)
        record = should_record(train, self.model, self.optimizer, self.recipes, self.engine, self.device)
        self.step = TrainStep(self.model, module, self.optimizer, train, self.device, self.engine, record)
        if self._restored is not None and self.state.step:
            path = self._restored
            self.optimizer.make_state()
            self.ranks.together(lambda: fill_tensors(path, "optimizer", self._optimizer_tensors()))

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return self.optimizer.tensors(self.model)

    @torch.no_grad()
    def _initialize_quantizers(self, batch: tuple[Tensor, Tensor]) -> None:
        """Let those that learn see a batch, so that they have their first steps, and know it, before compiling."""
        if any(isinstance(module, StatefulQuantizer) for module in self.model.modules()):
            self._plain_loss(*batch)

    # -- one step -----------------------------------------------------------------------------------------------------

    def _loop(self, log: Log, interrupt: Interrupt, update: Callable[..., None]) -> None:
        train = self.config.train
        clock = time.monotonic() - self.state.seconds
        self._before_step()
        update(self._share_done())
        while self._stopped_by(interrupt) is None and (share := self._share_done()) < 1.0:
            started = time.monotonic()
            self._step(share)
            if self.device.type == "cpu" or self.state.step % train.log_every == 0:
                self._look_at_losses()
            self.state.step_seconds += time.monotonic() - started
            if self.state.step % train.log_every == 0:
                self._add_to_curve(learning_rate(train, share), log)
            self.state.seconds = self.ranks.largest(time.monotonic() - clock)[0]
            self._before_step()  # also before anyone looks at the model or saves it
            if train.eval_every and self.state.step % train.eval_every == 0:
                self._validate(log)
            if self.state.step % train.checkpoint_every == 0:
                self._save()
            update(self._share_done(), self._status())
        self._look_at_losses()

    def _stopped_by(self, interrupt: Interrupt) -> int | None:
        """The signal that any of the processes has received; the same answer for all of them."""
        return int(self.ranks.largest(interrupt.received or 0)[0]) or None

    def _before_step(self) -> None:
        moment = self._moment(self._share_done())
        for recipe in self.recipes:
            recipe.before_step(moment)

    def _moment(self, done: float) -> Moment:
        return Moment(self.model, self.optimizer, done, learning_rate(self.config.train, done))

    def _step(self, done: float) -> None:
        moment = self._moment(done)
        inputs, targets = (torch.from_numpy(part) for part in self.loader.next_batch())
        loss, self._grad_norm = self.step(inputs, targets, moment.lr)
        for recipe in self.recipes:
            recipe.after_step(moment)
        self._pending.append(loss)
        self.state.step += 1
        self.state.tokens += inputs.numel() * self.ranks.world_size

    def _plain_loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What `TrainStep.loss` computes, of the model that is neither compiled nor cut."""
        with autocast(self.device):
            loss: tuple[Tensor, Tensor] = self.model(inputs, targets=targets)
        return loss

    def _first_micro_batch(self) -> tuple[Tensor, Tensor]:
        position = self.loader.state_dict()
        inputs, targets = (torch.from_numpy(part) for part in self.loader.next_batch())
        self.loader.load_state_dict(position)
        size = self.config.train.micro_batch_size or len(inputs)
        return inputs[:size].to(self.device), targets[:size].to(self.device)

    def _share_done(self) -> float:
        """Share of the budget that is spent."""
        seconds = self.config.budget.seconds
        if seconds is not None:
            return self.state.seconds / seconds
        return self.state.step / (self.config.total_steps() or 1)

    # -- looking ------------------------------------------------------------------------------------------------------

    def _look_at_losses(self) -> None:
        """Fetch the losses of the last steps; on CUDA this waits for the device, so it is not done every step.

        Raises:
            TrainingError: one is not finite.
        """
        if not self._pending:
            return
        losses = self.ranks.mean(torch.stack(self._pending)).tolist()
        first_step = self.state.step - len(losses) + 1
        self._pending.clear()
        for step, loss in enumerate(losses, first_step):
            if not abs(loss) < float("inf"):
                raise TrainingError(self._non_finite_message(step, loss))
        if not bool(torch.isfinite(self._grad_norm)):
            raise TrainingError(self._non_finite_message(self.state.step, losses[-1]))
        self.state.recent_losses.extend(losses)

    def _non_finite_message(self, step: int, loss: float) -> str:
        broken = next((name for name, p in self.model.named_parameters() if not self._is_finite(p)), None)
        good = latest_checkpoint(self.folder.checkpoints)
        what = f"the loss became {loss}" if not abs(loss) < float("inf") else "the gradient became non-finite"
        where = f" (first non-finite parameter: {broken})" if broken else ""
        kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        return f"{what} at step {step}{where}; {kept}; start a run with a lower train.lr, or look at the data there"

    def _is_finite(self, parameter: Tensor) -> bool:
        return not self.ranks.largest(not bool(torch.isfinite(local_shard(parameter)).all()))[0]

    def _add_to_curve(self, lr: float, log: Log) -> None:
        losses = self.state.recent_losses
        point = {
            "step": self.state.step,
            "tokens": self.state.tokens,
            "loss": sum(losses) / len(losses),
            "lr": lr,
            "grad_norm": float(self._grad_norm),
        }
        self.state.recent_losses = []
        self.state.curve.append(point)
        log(self.state.step, {"train/loss": point["loss"], "train/lr": lr, "train/grad_norm": point["grad_norm"]})

    def _validate(self, log: Log) -> None:
        train = self.config.train
        with autocast(self.device), uncompiled(), self.step.weight_cache():
            result = evaluate(
                self.model, self.data.val, train.seq_len, max_tokens=train.eval_tokens, device=self.device,
                show_progress=False, ranks=self.ranks,
            )  # fmt: skip
        self.state.validations.append({"step": self.state.step, "tokens": self.state.tokens, "loss": result.loss})
        log(self.state.step, {"val/loss": result.loss})

    def _status(self) -> str:
        loss = self.state.recent_losses[-1] if self.state.recent_losses else None
        if loss is None and self.state.curve:
            loss = self.state.curve[-1]["loss"]
        speed = self.state.tokens / max(self.state.step_seconds, 1e-9)
        return f"loss {loss:.3f}  {speed:,.0f} tokens/s" if loss is not None else f"{speed:,.0f} tokens/s"

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self._look_at_losses()  # never save a model whose loss is not finite
        config, position = self.config.model_dump(mode="json"), self.loader.state_dict()
        state = CheckpointState(config, self.data.data_hash, position, self.state)
        tensors = {"model": model_tensors(self.model), "optimizer": self._optimizer_tensors()}
        cut = self.engine == "fsdp"
        write_checkpoint(self.folder.checkpoints, tensors, state, self.ranks, pieces=cut)
        self.ranks.first(lambda: prune(self.folder.checkpoints, self.config.train.keep_checkpoints))
        self._save_record(None)

    def _finish(self) -> RunRecord:
        model = self._whole_model()
        with uncompiled(), cached_weights(model):
            result = evaluate(
                model, self.data.val, self.config.train.seq_len, text_bytes=self.data.val_bytes,
                end_of_text=self.data.end_of_text, device=self.device, ranks=self.ranks,
            )  # fmt: skip
        return self._save_record(result)

    @torch.no_grad()
    def _whole_model(self) -> Llama:
        """The model with all its weights on this process."""
        if self.engine != "fsdp":
            return self.model
        model = build_model(self.config).to(self.device)
        own = model_tensors(model)
        for name, tensor in model_tensors(self.model).items():
            own[name].copy_(whole(tensor))
        model.load_state_dict(model.state_dict())  # by which quantisers notice what they now hold
        return model

    def _save_record(self, final: Evaluation | None) -> RunRecord:
        record = self._record(final)
        self.ranks.first(lambda: self.folder.save_record(record))
        return record

    def _record(self, final: Evaluation | None) -> RunRecord:
        state, speed = self.state, None
        if state.step_seconds > 0:
            speed = state.tokens / state.step_seconds
        return RunRecord(
            config=self.config.model_dump(mode="json"),
            versions=package_versions(),
            device=device_name(self.device),
            data={
                "description": self.data.description,
                "hash": self.data.data_hash,
                "val_hash": self.data.val_hash,
                "train_tokens": len(self.data.train),
                "val_tokens": len(self.data.val),
                "val_bytes": self.data.val_bytes,
                "notes": "\n".join(self.data.notes),
            },
            parameters={"all": self.config.model.parameters, "non_embedding": self.config.model.block_parameters},
            curve=state.curve,
            validations=state.validations,
            final=final.as_dict() if final else None,
            steps=state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            tokens_per_second=speed,
            peak_memory_bytes=int(self.ranks.largest(peak_memory(self.device))[0]),
            checks=state.checks,
            initial_weights=state.initial_weights,
            processes=self.ranks.world_size,
            parallel=self.engine,
        )
