"""Run folders as training writes them, without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from questlm.config import RunConfig
from questlm.records import RunRecord

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(name, bits=4, layers=2, seed=0, loss=3.0, **changes of the record) -> run folder in tmp_path/runs."""

    def make(
        name: str,
        bits: int = 4,
        layers: int = 2,
        seed: int = 0,
        loss: float | None = 3.0,
        **changes: Any,
    ) -> Path:
        config = RunConfig(
            model={"layers": layers, "hidden": 128, "heads": 1, "vocab_size": 512},
            quant={"weight_bits": bits, "act_bits": bits, "embeddings": "bf16"},
            budget={"tokens_per_param": 50},
            seed=seed,
        )
        tokens = 50 * config.model.block_parameters
        steps = [tokens * share // 20 for share in range(1, 21)]
        end = loss or 3.5
        content: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "versions": {},
            "device": "some GPU",
            "data": {"val_hash": "abc"},
            "parameters": {"all": config.model.parameters, "non_embedding": config.model.block_parameters},
            "curve": [{"step": n, "tokens": n, "loss": end + tokens / 20 / n} for n in steps],
            "validations": [{"step": n, "tokens": n, "loss": end + tokens / 30 / n} for n in steps[4:16:4]],
            "final": {"loss": loss, "perplexity": 20.0, "bits_per_byte": 1.0, "tokens": 1000} if loss else None,
            "steps": 20,
            "tokens": tokens,
            "seconds": 90.0,
            "tokens_per_second": 1234.5,
            "peak_memory_bytes": 3_000_000_000,
        }
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        RunRecord(**content | changes).save(folder)
        return folder

    return make
