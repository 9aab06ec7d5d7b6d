"""The benchmarks' own models: what they time must be a valid model of the shape that they name."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import questlm
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
from questlm.errors import ConfigError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODEL = ModelConfig(layers=1, hidden=256, heads=2, mlp_hidden=512, vocab_size=300)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the folder `benchmarks` as its scripts do."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.slow
def test_a_random_artifact_of_every_packed_side_generates(benchmark: Any, tmp_path: Path) -> None:
    sides = benchmark("bench_cpu_peers").SIDES
    write = benchmark("random_models").write_random_artifact
    read = {name: write(tmp_path / name, MODEL, side.spec) for name, side in sides.items() if side.spec is not None}
    assert read["W1A1"] < read["ternary"] < read["W2A2"] < read["W4A4"] == read["W4A16"] == read["W4A4 avx2"]
    options = GenerationOptions(max_new_tokens=3, temperature=0, stop_at_end=False)
    for name in read:
        assert len(questlm.load(tmp_path / name).generate_ids([1, 2], options)) == 3


def test_a_random_packed_llama_computes(benchmark: Any) -> None:
    with torch.inference_mode():
        model = benchmark("gpu_models").packed_llama(MODEL, QuantSpec(weight_bits=2, act_bits=2), torch.device("cpu"))
        logits = model(torch.tensor([[1, 2, 3]]))
    assert logits.shape == (1, 3, 300) and torch.isfinite(logits).all()


def test_random_ternary_blocks_hold_no_fourth_level(benchmark: Any) -> None:
    blocks = benchmark("random_models")._random_blocks("TQ2_0", (8, 512), np.random.default_rng(0))
    assert blocks.shape == (8, 2 * 66)
    codes = blocks.reshape(-1, 66)[:, :64, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    assert set(np.unique(codes)) == {0, 1, 2}


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "TQ2_0"])
def test_random_blocks_have_finite_scales(benchmark: Any, kind: str) -> None:
    models = benchmark("random_models")
    entries, size, scales, _ = models._LAYOUTS[kind]
    blocks = models._random_blocks(kind, (4, 512), np.random.default_rng(0)).reshape(-1, size)
    assert len(blocks) == 4 * 512 // entries
    for offset, _ in scales:
        value = np.ascontiguousarray(blocks[:, offset : offset + 2]).view(np.float16)
        assert np.isfinite(value).all() and (value > 0).all()


@pytest.mark.parametrize(("columns", "kind"), [(512, "TQ2_0"), (640, "Q4_0")])
def test_rows_that_do_not_fill_a_block_take_another_type(benchmark: Any, columns: int, kind: str) -> None:
    assert benchmark("random_models")._fitting("TQ2_0", columns) == kind


def test_a_peer_that_is_not_installed_is_left_out_with_a_line(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = benchmark("bench_cpu_peers")
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert [name for name, side in peers.SIDES.items() if peers._can_run(name, side)] == [
        "W4A4", "W4A4 avx2", "W4A16", "W2A2", "ternary", "W1A1", "float32", "bfloat16",
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Q4_0: left out; not installed: llama-cpp-python, gguf (pip install -e '.[bench]')"
    assert lines[-1] == "torchao int4: left out; not installed: torchao (pip install -e '.[bench]')"
    assert len(lines) == 7


def test_the_share_of_the_bandwidth_is_bytes_times_speed(benchmark: Any) -> None:
    turns = [{"decode_tokens_per_second": speed} for speed in (9.0, 10.0, 12.0)]
    summary = benchmark("bench_cpu_peers")._summary(turns, 500, 20_000.0)
    assert summary["share_of_bandwidth"] == 0.25
    assert (summary["decode_tokens_per_second"]["median"], summary["decode_tokens_per_second"]["count"]) == (10.0, 3)
    json.dumps(summary)


def test_the_page_on_cpu_inference_holds_the_tables_of_the_committed_result(benchmark: Any) -> None:
    writer = benchmark("cpu_peers_page")
    result = json.loads(writer.RESULT.read_text(encoding="utf-8")) if writer.RESULT.exists() else None
    page = writer.PAGE.read_text(encoding="utf-8")
    assert page == writer.page_text(page, result), "run python benchmarks/cpu_peers_page.py"


def test_a_token_reads_all_weights_but_an_embedding_that_is_no_head(benchmark: Any, tmp_path: Path) -> None:
    models = benchmark("random_models")
    for tied in (False, True):
        shape = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=64, vocab_size=64, tied_head=tied)
        read = models.write_random_artifact(tmp_path / str(tied), shape, QuantSpec())
        blocks = (4 * 32 * 32 + 3 * 32 * 64) // 2 + 4 * (4 * 32 + 2 * 64 + 32)
        assert read == blocks + 64 * 32 + 4 * 64 + 4 * 32 * 3


def test_a_command_names_no_folders(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/x/bench.py", "--artifact", "demo=/y/runs/packed", "--out", "/z/found.json", "--presets", ""]
    monkeypatch.setattr("sys.argv", words)
    command = benchmark("common").command()
    assert command == "python benchmarks/bench.py --artifact demo=packed --out found.json --presets ''"


def test_a_ratio_is_against_the_faster_way_of_the_opponent(benchmark: Any) -> None:
    def side(speed: float) -> dict[str, Any]:
        names = ("decode_tokens_per_second", "prefill_tokens_per_second")
        names += ("load_seconds", "first_token_seconds", "resident_bytes")
        return {name: {"median": speed, "min": speed, "max": speed} for name in names} | {
            "share_of_bandwidth": 0.5,
            "weight_bytes_per_token": 10**8,
        }

    measured = {
        "share_of_processors_for_others": 0.002,
        "read_bytes_per_second": {"median": 2e10, "min": 2e10, "max": 2e10},
        "int8_operations_per_second": {"median": 1e12},
        "float32_operations_per_second": {"median": 1e11},
        "operations_per_token": 10**9,
        "trained": {"tokens": 1000, "loss": 4.25},
        "sides": {"W4A4": side(60), "Q4_0": side(20), "Q4_0 flash": side(24), "W1A1": side(90)},
    }
    settings = {"rounds": 1, "prefill": 512}
    result = {
        "device": "a CPU",
        "date": "2026-01-01",
        "versions": {"torch": "2", "instruction set": "avx2"},
        "settings": settings,
    }
    result |= {"load_before": 0.1, "command": "python x", "results": {"800m": measured}}
    text = benchmark("cpu_peers_page").tables(result)
    assert "| decode, W4A4 | 60.0 | Q4_0 flash 24.0 | 2.50 | 1.7 |" in text
    assert "| prefill, W1A1 | 90.0 | Q4_0 flash 24.0 | 3.75 | 5.0 |" in text
    assert "TQ2_0" not in text
    assert "| W4A4 | 100 MB | 10.0 | 200 | 50% | 5,120 | 1,000 | 6% |" in text
    assert "trained on 1,000 tokens, validation loss 4.2500." in text
    assert "| W4A4 | 60.0 (60.0 to 60.0) | 200 | 50% | 60 (60 to 60) | 60.00 | 60.000 | 60 bytes |" in text


def test_communication_is_exposed_where_nothing_computes(benchmark: Any) -> None:
    def kernel(name: str, begin: float, end: float, cat: str = "kernel") -> dict[str, Any]:
        return {"cat": cat, "name": name, "ts": begin, "dur": end - begin}

    events = [
        kernel("gemm", 0, 4000),
        kernel("gemm", 3000, 6000),
        kernel("ncclDevKernel_AllReduce", 5000, 8000),
        kernel("Memcpy", 7000, 7500, "gpu_memcpy"),
        kernel("adam", 9000, 10000),
        kernel("nccl:all_reduce", 0, 99000, "gpu_user_annotation"),
    ]
    found = benchmark("overlap").overlap(events, 2)
    assert found["milliseconds_per_step"] == {
        "step": 5.0, "computing": 3.75, "communicating": 1.5, "exposed": 0.75, "idle": 0.5,
    }  # fmt: skip
    assert found["communication"]["ncclDevKernel_AllReduce"]["exposed"] == 0.75
    assert benchmark("overlap").overlap([], 3)["milliseconds_per_step"]["step"] == 0


def test_settings_of_scaling_out_are_read_as_they_are_written(benchmark: Any) -> None:
    parse = benchmark("scale_settings").Setting.parse
    texts = ["800m w4 alone", "3b w16 fsdp x4 gather=operand micro=8", "30m w4 replicas x2 accumulate=2 ctas=8"]
    first, second, third = (parse(text) for text in texts)
    assert [str(first), str(second), str(third)] == texts
    assert (second.engine, second.gpus, third.sequences, third.micro_batch) == ("fsdp", 4, 128, 64)
    assert first.work == parse("800m w4 replicas x4 ctas=8").work != second.work
    for text in ("800m w4", "800m w4 ddp", "800m w4 ddp x2 bucket=1"):
        with pytest.raises(ConfigError, match="is no setting; write PRESET"):
            parse(text)
    for text in benchmark("bench_scale_out").SETTINGS:
        assert str(parse(text)) == text


def test_the_page_on_several_gpus_holds_the_table_on_paper(benchmark: Any) -> None:
    page = (BENCHMARKS.parent / "docs" / "howto" / "several-gpus.md").read_text(encoding="utf-8")
    assert benchmark("scale_sizing").table([2, 4, 8, 64], [8, 1]) in page, "run python benchmarks/scale_sizing.py"


def test_the_page_on_several_gpus_holds_the_table_of_the_record(benchmark: Any) -> None:
    writer = benchmark("scale_out_page")
    page = writer.PAGE.read_text(encoding="utf-8")
    record = json.loads(writer.RECORD.read_text(encoding="utf-8"))
    assert page == writer.page_text(page, record), "run python benchmarks/scale_out_page.py"


def test_on_paper_slower_links_cost_time_and_sharding_saves_it(benchmark: Any) -> None:
    sizing = benchmark("scale_sizing")
    work = sizing.works()[0]
    fast, slow = (sizing.step_seconds(work, 64, "replicas", bandwidth) for bandwidth in (360e9, 10e9))
    assert work.seconds < fast < slow
    assert slow > sizing.exchanged_bytes(work.model, work.quant, "replicas", 64, sizing._FAST).sent(64) / 10e9
    assert sizing.step_seconds(work, 4, "fsdp", 355e9) < sizing.step_seconds(work, 4, "replicas", 355e9)
