"""What `bench_scale_out.py` measures: a training step of one preset, width, engine and number of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from questlm.config import ParallelConfig, RunConfig, load_config
from questlm.errors import ConfigError
from questlm.parallel import Processes, checkpoint_activations, compile_blocks, distribute
from questlm.scaling.exchange import exchanged_bytes
from questlm.training.build import build_model
from questlm.training.device import should_compile
from questlm.training.optim import make_optimizer
from questlm.training.step import TrainStep, should_record

_MICRO_BATCH = {"30m": 64, "100m": 64, "800m": 32, "3b": 8}
_OWN = ("micro", "accumulate", "ctas", "priority")  # options that are no settings of a run
_TRAIN = ("cuda_graphs", "recompute", "compile")


@dataclass(frozen=True)
class Setting:
    """One line of the result: `800m w4 fsdp x4 gather=operand`; `800m w4 alone` is one process without the others.

    Attributes:
        engine: 'ddp', 'replicas', 'fsdp', or 'none' for a process alone, which all are at the same time.
        options: settings of the section `parallel`; `cuda_graphs`, `recompute`, `compile` of `train`;
            `micro`, sequences of a pass; `accumulate`, passes of a step; `ctas`, the most blocks of an NCCL kernel;
            `priority=high`, that of NCCL's stream.
    """

    preset: str
    bits: str
    engine: str
    gpus: int
    options: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read a setting; raises ConfigError for one that is none."""
        words = text.split()
        plain, options = [w for w in words if "=" not in w], tuple(tuple(w.split("=", 1)) for w in words if "=" in w)
        known = (*_OWN, *_TRAIN, *ParallelConfig.model_fields)
        alone = plain[2:] == ["alone"]
        if len(plain) != (3 if alone else 4) or any(name not in known for name, _ in options):
            raise ConfigError(
                f"{text!r} is no setting; write PRESET wBITS ENGINE xGPUS, or PRESET wBITS alone, and then "
                f"NAME=VALUE of {', '.join(known)}"
            )
        preset, bits, engine = plain[0], plain[1].removeprefix("w"), "none" if alone else plain[2]
        return cls(preset, bits, engine, 1 if alone else int(plain[3].removeprefix("x")), options)  # type: ignore[arg-type]

    def __str__(self) -> str:
        who = "alone" if self.engine == "none" else f"{self.engine} x{self.gpus}"
        return " ".join([self.preset, f"w{self.bits}", who, *(f"{name}={value}" for name, value in self.options)])

    def option(self, name: str, default: str) -> str:
        """The value of an option."""
        return dict(self.options).get(name, default)

    @property
    def work(self) -> tuple[str, ...]:
        """What each process computes in a step: settings with the same work compare."""
        names = ("micro", "accumulate", "recompute")
        return (self.preset, self.bits, *(self.option(name, "") for name in names))

    @property
    def micro_batch(self) -> int:
        """Sequences of a pass of one process."""
        return int(self.option("micro", str(_MICRO_BATCH.get(self.preset, 8))))

    @property
    def sequences(self) -> int:
        """Sequences of a step of one process."""
        return self.micro_batch * int(self.option("accumulate", "1"))

    def config(self, sequence: int, device: torch.device) -> RunConfig:
        """Settings of the run of one process; the batch is its own."""
        dense = self.bits == "16"
        train = {name: value for name, value in self.options if name in _TRAIN}
        parallel = [f"parallel.{name}={value}" for name, value in self.options if name not in (*_TRAIN, *_OWN)]
        return load_config(
            self.preset,
            overrides=parallel,
            flags={
                "model": {"vocab_size": 32000 if device.type == "cuda" else 512},
                "quant": {
                    "weight_bits": int(self.bits),
                    "act_bits": int(self.bits),
                    "embeddings": "float" if dense else "bf16",
                },
                "train": {
                    "device": device.type,
                    "seq_len": sequence,
                    "optimizer": "adamw",  # Muon shares its matrices among all processes, not the first ones
                    "batch_size": self.sequences,
                    "micro_batch_size": self.micro_batch,
                    **train,
                },
            },
        )

    def exchanged(self, config: RunConfig) -> dict[str, float] | None:
        """Bytes that each process hands to collectives in a step, and those that it sends over its links."""
        if self.engine == "none":
            return None
        passes = self.sequences // self.micro_batch
        half = config.train.device == "cuda"
        found = exchanged_bytes(config.model, config.quant, self.engine, self.gpus, config.parallel, passes, half)  # type: ignore[arg-type]
        return {**found._asdict(), "sent": found.sent(self.gpus)}


class BuiltStep(NamedTuple):
    """An optimizer step on a batch of this process, which returns its loss; whether it is replayed from a graph."""

    take: Callable[[], torch.Tensor]
    recorded: bool


def build_step(
    setting: Setting, config: RunConfig, device: torch.device, group: dist.ProcessGroup | None, rank: int
) -> BuiltStep:
    """Model, optimizer and batch, set up as the trainer does it."""
    with device:
        model = build_model(config)
    checkpoint_activations(model, config.train.recompute)
    if should_compile(config.train, device):
        compile_blocks(model)
    engine: Any = setting.engine
    module = distribute(model, engine, device, config.parallel, group)
    optimizer = make_optimizer(model, config.train, Processes(rank, setting.gpus))
    record = should_record(config.train, model, optimizer, [], engine, device)
    step = TrainStep(model, module, optimizer, config.train, device, engine, record)
    generator = torch.Generator().manual_seed(rank)
    shape = (2, setting.sequences, config.train.seq_len)
    assert config.model.vocab_size is not None
    inputs, targets = torch.randint(config.model.vocab_size, shape, generator=generator).to(device)
    # A rate so small that the loss of random tokens stays near ln(vocabulary) and no number leaves its usual range.
    return BuiltStep(lambda: step(inputs, targets, 1e-5)[0], record)


def make_groups(settings: Sequence[Setting], device: torch.device) -> dict[Setting, dist.ProcessGroup | None]:
    """The group of the first processes of each setting; all processes make them, in the same order."""
    made: dict[tuple[object, ...], dist.ProcessGroup] = {}
    found: dict[Setting, dist.ProcessGroup | None] = {}
    for setting in settings:
        if setting.engine == "none":
            found[setting] = None
            continue
        key = setting.gpus, setting.option("ctas", ""), setting.option("priority", "")
        if key not in made:
            made[key] = dist.new_group(
                list(range(setting.gpus)),
                backend="nccl" if device.type == "cuda" else "gloo",
                pg_options=_nccl_options(setting) if device.type == "cuda" else None,
            )
        found[setting] = made[key]
    return found


def _nccl_options(setting: Setting) -> Any:
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=setting.option("priority", "") == "high")
    if ctas := setting.option("ctas", ""):
        options.config.max_ctas = int(ctas)
    return options
