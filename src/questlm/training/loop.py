"""The training loop: steps until the budget is spent.

Several processes (torchrun) run this same code. Each takes its share of every batch; only the main
process writes files and prints; and all stop at the same step, because they agree on the time and on signals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from questlm.progress import progress
from questlm.records import RunRecord
from questlm.training.clock import BudgetClock
from questlm.training.compiling import without_compiler_warnings
from questlm.training.interrupt import Interrupt, Interrupted
from questlm.training.loggers import open_loggers
from questlm.training.loss_watcher import LossWatcher
from questlm.training.progress_file import progress_file
from questlm.training.recipes import Moment, Recipe
from questlm.training.recorder import Recorder
from questlm.training.schedule import learning_rate
from questlm.training.state import TrainingState
from questlm.training.step import TrainStep
from questlm.training.validation import validate_at_end, validate_on_part

__all__ = ["Trainer"]

_STOPPING = "quest: the run stops after this step and is saved; Ctrl-C again leaves at once, without saving"


class Trainer:
    """Trains one run to the end of its budget."""

    def __init__(self, state: TrainingState, step: TrainStep, recipes: Sequence[Recipe]) -> None:
        self.run, self.state, self.step, self.recipes = state.run, state, step, recipes
        self.losses = LossWatcher(state)
        self.recorder: Recorder
        self.clock: BudgetClock

    def train(self) -> RunRecord:
        """Train until the budget is spent, validate on the whole split in float32, and return the record.

        Raises:
            TrainingError: the loss is not finite any more.
            Interrupted: SIGINT or SIGTERM; the run is saved.
        """
        run = self.run
        with ExitStack() as stack:
            loggers = run.config.train.loggers if run.processes.is_main else ()
            log = open_loggers(loggers, run.folder.path, run.config.model_dump(mode="json"), stack)
            self.recorder = Recorder(run, self.state.counters, log)
            stack.enter_context(without_compiler_warnings())
            interrupt = stack.enter_context(Interrupt(_STOPPING if run.processes.is_main else ""))
            with self._showing_progress() as show:
                self._take_steps(interrupt, show)
            self._save()
            if (number := self._stopped_by(interrupt)) is not None:
                raise Interrupted(number, run.folder.path)
        return self._finish()

    @contextmanager
    def _showing_progress(self) -> Iterator[Callable[[], None]]:
        """Yield a function that shows how far the run is, on the terminal and in its folder."""
        self.clock = BudgetClock(self.run, self.state.counters)
        with (
            progress("training", 1.0, show=self.run.processes.is_main) as line,
            progress_file(self.clock) as renew_file,
        ):

            def show() -> None:
                line(self.clock.share_done, self.recorder.status())
                renew_file()

            yield show

    def _take_steps(self, interrupt: Interrupt, show: Callable[[], None]) -> None:
        self._before_step()
        show()
        while self._stopped_by(interrupt) is None and (share := self.clock.share_done) < 1.0:
            with self.clock.timing_step():
                self._step(share)
            if self._is_every(self.run.config.train.log_every):
                self.recorder.add_point(self._moment(share).lr, float(self.losses.gradient_norm))
            self.clock.read()
            self._before_step()  # also before anyone looks at the model or saves it
            self._validate_and_save()
            show()
        self.losses.fetch()

    def _step(self, done: float) -> None:
        """Take one step when the share `done` of the budget is spent."""
        counters, moment = self.state.counters, self._moment(done)
        inputs, targets = (torch.from_numpy(part) for part in self.state.loader.next_batch())
        loss, gradient_norm = self.step(inputs, targets, moment.lr)
        for recipe in self.recipes:
            recipe.after_step(moment)
        self.losses.add(loss, gradient_norm)
        counters.step += 1
        counters.tokens += inputs.numel() * self.run.processes.world_size
        if self.run.device.type == "cpu" or self._is_every(self.run.config.train.log_every):
            self.losses.fetch()

    def _before_step(self) -> None:
        moment = self._moment(self.clock.share_done)
        for recipe in self.recipes:
            recipe.before_step(moment)

    def _moment(self, done: float) -> Moment:
        lr = learning_rate(self.run.config.train, done)
        return Moment(self.state.model, self.state.optimizer, done, lr, self.step.record_again)

    def _validate_and_save(self) -> None:
        train = self.run.config.train
        if train.eval_every and self._is_every(train.eval_every):
            self.recorder.add_validation(validate_on_part(self.state, self.step))
        if self._is_every(train.checkpoint_every):
            self._save()

    def _is_every(self, steps: int) -> bool:
        return self.state.counters.step % steps == 0

    def _stopped_by(self, interrupt: Interrupt) -> int | None:
        """The signal that any of the processes has received; the same answer for all of them."""
        return int(self.run.processes.largest(interrupt.received or 0)[0]) or None

    def _save(self) -> None:
        self.losses.fetch()  # never save a model whose loss is not finite
        self.state.save()
        self.recorder.save()

    def _finish(self) -> RunRecord:
        return self.recorder.save(validate_at_end(self.state))
