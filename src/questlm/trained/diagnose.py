"""Pictures of how a run is quantised, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from questlm.config import QuantSpec, RunConfig
from questlm.data import TokenStream, WindowLoader, prepare, prepare_all
from questlm.diagnostics import diagnose as measure
from questlm.diagnostics.layers import Batch
from questlm.diagnostics.pictures import draw
from questlm.errors import CheckpointError, ConfigError, DataError
from questlm.files import atomic_folder
from questlm.json_files import write_json
from questlm.plotting import require_matplotlib
from questlm.quant import find_method
from questlm.records import package_versions
from questlm.training import RunFolder, load_run
from questlm.training.checkpoint import checkpoints_in, read_checkpoint
from questlm.training.device import device_name, pick_device

__all__ = ["RESULT_NAME", "diagnose", "diagnosed_spec"]

RESULT_NAME = "diagnostics.json"
_FORMAT = 1
_TOKENS_PER_BATCH = 1024
_NOTE = (
    "This run has a format, a trust factor or overrides of its own; it is diagnosed on integer grids, alike in all "
    "layers, and by the published trust factor."
)


def diagnose(
    run: str | Path,
    out: str | Path,
    data: str | None = None,
    bits: int | str | None = None,
    batches: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how a run is quantised, and write pictures and numbers into the folder `out`, whole or not at all.

    Args:
        run: folder of a run; its newest checkpoint is measured, and trust masks in every one that it kept.
        out: must not exist, or be empty.
        data: other text than the run's own validation split, all of it.
        bits: width to diagnose at, 1 to 8 or 'ternary'; None: the run's.
        batches: how many of 1024 tokens to measure on; smaller ones of a short text.
        seed: chooses the tokens.

    Returns:
        What `diagnostics.json` holds.

    Raises:
        ConfigError: `out` exists, or the run cannot be diagnosed at these bits.
        CheckpointError: not a run folder, no checkpoint, a damaged one, or a plugin that is not loaded or has changed.
        DataError: text that cannot be read or is too short.
        MissingDependencyError: matplotlib is not installed.
    """
    run, out = Path(run), Path(out)
    require_matplotlib("drawing diagnostics")
    _require_absent(out)
    loaded = load_run(run)
    spec = diagnosed_spec(loaded.config.quant, bits)
    device = pick_device("auto")
    tokens = _tokens_of(run, loaded.config, data)
    chosen = _draw_batches(tokens, loaded.config.train.seq_len, batches, seed, device)
    checkpoints = _checkpoints(run)
    result: dict[str, Any] = {
        "format": _FORMAT,
        "title": _title(loaded.config, loaded.step, loaded.tokens, spec),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        # The packages decide the numbers; which checkout this is does not.
        "versions": {name: version for name, version in package_versions().items() if name != "git"},
        "run": {"label": loaded.config.quant.label, "parameters": loaded.config.model.block_parameters},
        "checkpoint": {"step": loaded.step, "tokens": loaded.tokens},
        "note": "" if _uniform(loaded.config.quant) else _NOTE,
        "bits": {"weights": spec.weight_bits, "activations": spec.act_bits},
        "seed": seed,
        "tokens_per_batch": chosen[0][0].numel(),
        **measure(loaded.model.to(device), chosen, spec, _snapshots(checkpoints), len(checkpoints)),
    }
    with atomic_folder(out) as folder:
        result["pictures"] = draw(result, folder)
        write_json(folder / RESULT_NAME, result)
    return result


def diagnosed_spec(trained: QuantSpec, bits: int | str | None) -> QuantSpec:
    """What to diagnose a run at: its own bits or those asked for, on the uniform grids that the pictures compare.

    Raises:
        ConfigError: `bits` are none, the run's weights are not quantised and no bits are given, or its layers are more
            than a linear layer with rounded factors, so that the plain model beside it would be another one.
    """
    method = find_method(trained.method)
    if trained.enabled and (method.input_norm or method.branches):
        raise ConfigError(
            f"the layers of {trained.method} have norms before them or branches, which the unquantised model that they "
            f"would be compared with lacks; diagnose a run of another method"
        )
    own: dict[str, Any] = {"weight_bits": trained.weight_bits, "act_bits": trained.act_bits}
    width: Any = bits
    spec = QuantSpec(
        method=trained.method,
        block_size=trained.block_size,
        embeddings=trained.embeddings,
        **(own if bits is None else {"weight_bits": width, "act_bits": width}),
    )
    if spec.weight_bits == 16:
        what = "the weights of this run are not quantised" if bits is None else "16 bits quantise nothing"
        raise ConfigError(f"{what}, so there is nothing to diagnose; name a width with --bits, such as --bits 4")
    return spec


def _require_absent(out: Path) -> None:
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ConfigError(f"{out} exists already; remove it, or name another folder with --out")


def _tokens_of(run: Path, config: RunConfig, data: str | None) -> TokenStream:
    """The run's validation tokens, or all of another text by the run's tokenizer."""
    settings = RunFolder(run).data_settings(data)
    if data is not None:
        return prepare_all(settings, config.model.vocab_size).val
    try:
        return prepare(settings, config.model.vocab_size).val
    except DataError as problem:
        raise DataError(
            f"the validation data of training cannot be read ({problem}); name other text with --data"
        ) from None


def _draw_batches(tokens: TokenStream, seq_len: int, count: int, seed: int, device: torch.device) -> list[Batch]:
    """`count` batches, no window in two of them; smaller or, at last, fewer ones where the text is short."""
    if len(tokens) < 2:
        raise DataError("the text to diagnose on has no token to predict; use more text")
    window = min(seq_len, len(tokens) - 1)
    windows = (len(tokens) - 1) // window
    size = max(1, min(windows // count, _TOKENS_PER_BATCH // window))
    loader = WindowLoader(tokens, window, size, seed)
    parts = (loader.next_batch() for _ in range(min(count, windows // size)))
    return [(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)) for x, y in parts]


def _checkpoints(run: Path) -> list[Path]:
    """Checkpoints that the run kept, oldest first."""
    return checkpoints_in(RunFolder(run).checkpoints)


def _snapshots(checkpoints: list[Path]) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """Step and model tensors of each checkpoint, one at a time, verified."""
    for path in checkpoints:
        tensors, state = read_checkpoint(path)
        if "model" not in tensors:
            raise CheckpointError(f"{path} is not a whole checkpoint of this version")
        yield state.progress.step, tensors["model"]


def _title(config: RunConfig, step: int, tokens: int, spec: QuantSpec) -> str:
    size = config.model.block_parameters / 1e6
    text = f"{config.quant.label}, {size:.3g}M parameters in blocks, step {step:,} ({tokens:,} tokens)"
    trained = (config.quant.weight_bits, config.quant.act_bits)
    same_widths = trained == (spec.weight_bits, spec.act_bits)
    at = f"; diagnosed at w{spec.weight_bits}a{spec.act_bits}"
    on = "" if _uniform(config.quant) else "; on integer grids, alike in all layers"
    return text + ("" if same_widths else at) + on


def _uniform(trained: QuantSpec) -> bool:
    """Whether a run was trained on the grids that it is diagnosed on."""
    dense = trained.format in ("int", "ternary") and trained.act_format in (None, "int")
    return dense and trained.trust is None and not trained.overrides
