"""Keeping the record of a run: its loss curve, its validations and `record.json`."""

from __future__ import annotations

from questlm.evaluation import Evaluation
from questlm.records import RunRecord, package_versions
from questlm.training.context import RunContext
from questlm.training.counters import Counters
from questlm.training.device import device_name, peak_memory
from questlm.training.loggers import Log

__all__ = ["Recorder"]


class Recorder:
    """Adds to a run's curve and validations, tells the loggers, and writes the record."""

    def __init__(self, run: RunContext, counters: Counters, log: Log) -> None:
        self.run, self.counters, self.log = run, counters, log

    def add_point(self, lr: float, gradient_norm: float) -> None:
        """Add the mean of the losses since the last point to the curve."""
        counters = self.counters
        losses, counters.recent_losses = counters.recent_losses, []
        point = {
            "step": counters.step,
            "tokens": counters.tokens,
            "loss": sum(losses) / len(losses),
            "lr": lr,
            "grad_norm": gradient_norm,
        }
        counters.curve.append(point)
        self.log(counters.step, {f"train/{name}": point[name] for name in ("loss", "lr", "grad_norm")})

    def add_validation(self, loss: float) -> None:
        """Add the loss on a part of the validation split."""
        counters = self.counters
        counters.validations.append({"step": counters.step, "tokens": counters.tokens, "loss": loss})
        self.log(counters.step, {"val/loss": loss})

    def status(self) -> str:
        """Loss and speed, for the progress line."""
        loss, speed = self.counters.last_loss, f"{self.counters.tokens_per_second or 0.0:,.0f} tokens/s"
        return speed if loss is None else f"loss {loss:.3f}  {speed}"

    def save(self, final: Evaluation | None = None) -> RunRecord:
        """Write the record; `final`: on the whole validation split, once training has ended."""
        record = self._record(final)
        self.run.processes.on_main(lambda: self.run.folder.save_record(record))
        return record

    def _record(self, final: Evaluation | None) -> RunRecord:
        run, counters = self.run, self.counters
        return RunRecord(
            config=run.config.model_dump(mode="json"),
            versions=package_versions(),
            device=device_name(run.device),
            data=_describe_data(run),
            parameters={"all": run.config.model.parameters, "non_embedding": run.config.model.block_parameters},
            curve=counters.curve,
            validations=counters.validations,
            final=final.as_dict() if final else None,
            steps=counters.step,
            tokens=counters.tokens,
            seconds=counters.seconds,
            tokens_per_second=counters.tokens_per_second,
            peak_memory_bytes=int(run.processes.largest(peak_memory(run.device))[0]),
            checks=counters.checks,
            initial_weights=counters.initial_weights,
            recipe_inputs=counters.recipe_inputs,
            processes=run.processes.world_size,
            parallel=run.engine,
        )


def _describe_data(run: RunContext) -> dict[str, object]:
    data = run.data
    return {
        "description": data.description,
        "hash": data.data_hash,
        "val_hash": data.val_hash,
        "train_tokens": len(data.train),
        "val_tokens": len(data.val),
        "val_bytes": data.val_bytes,
        "notes": "\n".join(data.notes),
    }
