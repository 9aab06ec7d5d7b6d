"""One turn of `bench_cpu_peers.py`: a fresh process that loads one model, times it, and prints a line of JSON.

    python benchmarks/peer_turn.py '{"engine": "questlm", "path": "model/", "threads": 2, ...}'

An engine is a function that takes the settings of a turn, loads its model, and returns `generate(prompt, count)`, which
yields `count` greedy token ids behind a list of ids and starts afresh each time.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from questlm.config import ModelConfig
from questlm.models import KVCache, Llama

Generate = Callable[[list[int], int], Iterator[int]]

_BUFFER_BYTES = 2**30  # far larger than any cache
_BANDWIDTH_PASSES = 8
_PEAK_SIZE, _PEAK_PASSES = 1024, 40  # matrices of this many rows and columns: 3 MiB in 8 bits
_COLD_TOKENS = 4


def questlm_engine(turn: dict[str, Any]) -> Generate:
    """A packed model, by the public functions that every user calls."""
    import questlm
    from questlm import GenerationOptions

    model = questlm.load(turn["path"], weights=turn["weights"])

    def generate(prompt: list[int], count: int) -> Iterator[int]:
        return model.stream_ids(prompt, GenerationOptions(max_new_tokens=count, temperature=0, stop_at_end=False))

    return generate


def torch_engine(turn: dict[str, Any]) -> Generate:
    """The same Llama in PyTorch, with random weights of one dtype."""
    return float_generation(random_llama(turn))


def torchao_engine(turn: dict[str, Any]) -> Generate:
    """The same Llama in bfloat16, every linear layer's weights in 4 bits by torchao, in groups of 128."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    model = random_llama(turn)
    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=128))
    return float_generation(model)


def random_llama(turn: dict[str, Any]) -> Llama:
    """A Llama with random weights of the dtype of a turn."""
    with torch.device("meta"):
        model = Llama(ModelConfig(**turn["model"])).to(getattr(torch, turn["dtype"]))
    model = model.to_empty(device="cpu").eval()
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.03, 0.03) if parameter.ndim == 2 else torch.nn.init.ones_(parameter)
    return model


def float_generation(model: Llama) -> Generate:
    """Greedy generation by a plain Llama, keys and values in the dtype of its embedding."""

    @torch.inference_mode()
    def generate(prompt: list[int], count: int) -> Iterator[int]:
        cache = KVCache(model.config, 1, len(prompt) + count, model.embed.weight.dtype, "cpu")
        ids = torch.tensor([prompt])
        for _ in range(count):
            ids = model.next_logits(ids, cache).argmax(-1, keepdim=True)
            yield int(ids)

    return generate


def llama_engine(turn: dict[str, Any]) -> Generate:
    """A GGUF file in llama.cpp, by its C functions; the likeliest token is taken by numpy."""
    import llama_cpp as library

    quiet = library.llama_log_callback(lambda level, text, data: None)
    library.llama_log_set(quiet, None)
    library.llama_backend_init()
    settings = library.llama_model_default_params()
    settings.n_gpu_layers, settings.load_mode = 0, library.LLAMA_LOAD_MODE_MMAP
    model = library.llama_model_load_from_file(turn["path"].encode(), settings)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {Path(turn['path']).name}")
    settings = library.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = turn["context"], turn["context"], 512
    settings.n_threads = settings.n_threads_batch = turn["threads"]
    settings.flash_attn_type = int(turn["flash_attention"])
    context = library.llama_init_from_model(model, settings)
    if not context:
        raise RuntimeError("llama.cpp cannot make a context")
    memory, entries = library.llama_get_memory(context), turn["model"]["vocab_size"]

    def next_token(ids: list[int]) -> int:
        tokens = (library.llama_token * len(ids))(*ids)
        if library.llama_decode(context, library.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), (entries,))
        return int(logits.argmax())

    def generate(prompt: list[int], count: int, keep: Any = quiet) -> Iterator[int]:
        library.llama_memory_clear(memory, False)
        ids = prompt
        for _ in range(count):
            ids = [next_token(ids)]
            yield ids[0]

    return generate


ENGINES: dict[str, Callable[[dict[str, Any]], Generate]] = {
    "questlm": questlm_engine,
    "torch": torch_engine,
    "torchao": torchao_engine,
    "llama.cpp": llama_engine,
}


def measure(turn: dict[str, Any]) -> dict[str, float]:
    """Load a model and time it.

    The first token is the first of the process, behind the short prompt, so it pays for all that is done on first use.
    Decode is the time from the first to the last of many tokens behind the same prompt. Prefill is the time to the
    token behind a long prompt, the second time.
    """
    engine = ENGINES[turn["engine"]]
    import_libraries(turn["engine"])
    before, start = resident_bytes(), time.perf_counter()
    generate = engine(turn)
    loaded = time.perf_counter()
    prompt, entries = turn["prompt"], turn["model"]["vocab_size"]
    short, long = ([(7 * place + 11) % entries for place in range(count)] for count in (prompt, turn["prefill"]))
    cold = generate(short, _COLD_TOKENS)
    next(cold)
    first = time.perf_counter()
    for _ in cold:
        pass
    times = [time.perf_counter() for _ in generate(short, 1 + turn["tokens"])]
    for _ in range(2):
        asked = time.perf_counter()
        next(generate(long, 1))
        prefill = time.perf_counter() - asked
    return {
        "load_seconds": loaded - start,
        "first_token_seconds": first - loaded,
        "decode_tokens_per_second": turn["tokens"] / (times[-1] - times[0]),
        "prefill_tokens_per_second": turn["prefill"] / prefill,
        "resident_bytes": resident_bytes() - before,
    }


def import_libraries(engine: str) -> None:
    """Import what an engine needs, so that its size and time are not counted as the model's."""
    if engine == "llama.cpp":
        import llama_cpp  # noqa: F401
    elif engine == "torchao":
        import torchao.quantization  # noqa: F401
    else:
        import questlm.inference  # noqa: F401


def resident_bytes() -> int:
    """Resident memory of this process, mapped files included (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmRSS; this benchmark needs Linux")


def bandwidth(threads: int) -> dict[str, float]:
    """Bytes a second of reading: each thread searches its part of a large buffer for a byte that is not there (memchr).

    The C library's memchr reads with the widest instructions that the machine has and does next to nothing else.
    """
    search = ctypes.CDLL(None).memchr
    search.restype, search.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    buffer = torch.ones(_BUFFER_BYTES, dtype=torch.uint8)
    part, best = _BUFFER_BYTES // threads, float("inf")
    for _ in range(_BANDWIDTH_PASSES):
        places = [buffer.data_ptr() + index * part for index in range(threads)]
        readers = [threading.Thread(target=search, args=(place, 0, part)) for place in places]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = min(best, time.perf_counter() - start)
    return {"bytes_per_second": threads * part / best}


def peaks() -> dict[str, float]:
    """Operations a second (a product and its sum are two) that PyTorch's library reaches on square matrices."""
    size = (_PEAK_SIZE, _PEAK_SIZE)
    codes, numbers = torch.randint(-127, 128, size, dtype=torch.int8), torch.randn(size)
    products = {
        "int8_operations_per_second": lambda: torch._int_mm(codes, codes),
        "float32_operations_per_second": lambda: torch.mm(numbers, numbers),
    }
    found = {}
    for name, product in products.items():
        best = float("inf")
        for _ in range(_PEAK_PASSES):
            start = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - start)
        found[name] = 2 * _PEAK_SIZE**3 / best
    return found


def main() -> None:
    turn = json.loads(sys.argv[1])
    torch.set_num_threads(turn["threads"])
    print(json.dumps(bandwidth(turn["threads"]) | peaks() if turn["engine"] == "machine" else measure(turn)))


if __name__ == "__main__":
    main()
