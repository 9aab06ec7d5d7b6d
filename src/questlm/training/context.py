"""What the parts of a training run share: its settings, folder and data, and where it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from questlm.config import RunConfig
from questlm.data import PreparedData
from questlm.parallel import Engine, Processes, pick_engine
from questlm.training.device import pick_device
from questlm.training.run_folder import RunFolder

__all__ = ["RunContext"]


@dataclass(frozen=True)
class RunContext:
    """One run as this process sees it; nothing here changes while it trains.

    Attributes:
        config: resolved settings: batch size, vocabulary and the like are filled in.
        engine: how the processes share the model.
        started_in: the folder that relative paths in the settings start from.
    """

    config: RunConfig
    folder: RunFolder
    data: PreparedData
    processes: Processes
    device: torch.device
    engine: Engine
    started_in: Path

    @classmethod
    def here(
        cls, config: RunConfig, folder: RunFolder, data: PreparedData, processes: Processes, started_in: Path
    ) -> RunContext:
        """The run on the device and with the engine that its settings name.

        Raises:
            ConfigError: there is no such device.
        """
        device = pick_device(config.train.device, processes)
        engine = pick_engine(config.train.parallel, processes)
        return cls(config, folder, data, processes, device, engine, started_in)
