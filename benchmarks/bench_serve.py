"""Throughput and latency of `quest serve` over the number of clients that ask at once.

    python benchmarks/bench_serve.py ARTIFACT --out benchmarks/results/serve-cpu.json

The server is a process of its own on this machine and shares its cores with the clients, which are tasks of this one.
Each client asks for one text after the other, streamed: a prompt of random tokens, and as many tokens as it asks for.
Every number of clients is measured in each round, after requests that are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import torch
from common import header, write


class Answer(NamedTuple):
    """Seconds from a request to its first and last token."""

    first: float
    whole: float


async def ask(client: httpx2.AsyncClient, prompt: list[int], tokens: int) -> Answer:
    """One streamed request. RuntimeError where it is refused or ends early."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    begin, first, last, text = time.perf_counter(), 0.0, 0.0, b""
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        async for piece in reply.aiter_raw():
            last = time.perf_counter()
            first = first or last
            text += piece
    if f'"completion_tokens":{tokens}'.encode() not in text:
        raise RuntimeError(f"a request of {tokens} tokens got: {text[-300:]!r}")
    return Answer(first - begin, last - begin)


async def measure(url: str, clients: int, requests: int, prompt: int, tokens: int, vocabulary: int) -> dict[str, Any]:
    """Answers of `clients` clients that send `requests` requests each, and the seconds that all of them took."""
    draw = random.Random(clients)

    async def work(client: httpx2.AsyncClient, count: int) -> list[Answer]:
        prompts = [[draw.randrange(vocabulary) for _ in range(prompt)] for _ in range(count)]
        return [await ask(client, each, tokens) for each in prompts]

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(work(client, 1) for _ in range(clients)))
        begin = time.perf_counter()
        answers = await asyncio.gather(*(work(client, requests) for _ in range(clients)))
        return {"seconds": time.perf_counter() - begin, "answers": [each for one in answers for each in one]}


def summary(clients: int, tokens: int, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the rounds with one number of clients come to: tokens/s of all together, and seconds of a request."""
    answers = [each for one in rounds for each in one["answers"]]
    speeds = [tokens * len(one["answers"]) / one["seconds"] for one in rounds]
    return {
        "clients": clients,
        "requests": len(answers),
        "tokens_per_second": {
            "median": round(statistics.median(speeds), 1),
            "min": round(min(speeds), 1),
            "max": round(max(speeds), 1),
        },
        "first_token_seconds": percentiles([each.first for each in answers]),
        "request_seconds": percentiles([each.whole for each in answers]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th and 95th percentile."""
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(cuts[9], 4), "p95": round(cuts[18], 4)}


def table(record: Mapping[str, Any]) -> str:
    """The table of docs/howto/serve.md."""
    lines = [
        "| clients | tokens/s, all together | first token, p50 | p95 | whole text, p50 | p95 |",
        "|---|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        speed, first, whole = case["tokens_per_second"], case["first_token_seconds"], case["request_seconds"]
        times = " | ".join(f"{1000 * each[p]:,.0f} ms" for each in (first, whole) for p in ("p50", "p95"))
        lines.append(
            f"| {case['clients']} | {speed['median']:,.0f} ({speed['min']:,.0f}-{speed['max']:,.0f}) | {times} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Start the server, measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--requests", type=int, default=4, help="of each client in each round")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = json.loads((options.artifact / "config.json").read_text(encoding="utf-8"))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the server ends, too
    words = ["--port", "0", "--sequences", str(max(options.clients))]
    server = subprocess.Popen(
        [sys.executable, "-m", "questlm", "serve", str(options.artifact), *words], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        said = ""
        while (found := re.search(r"http://\S+", said)) is None:
            if not (line := server.stderr.readline()):
                raise SystemExit(f"the server did not start: {said}")
            said += line
        vocabulary = config["model"]["vocab_size"]
        results: dict[int, list[dict[str, Any]]] = {clients: [] for clients in options.clients}
        for number in range(options.rounds):
            for clients in options.clients:
                work = measure(found[0], clients, options.requests, options.prompt, options.tokens, vocabulary)
                results[clients].append(asyncio.run(work))
            print(f"round {number + 1} of {options.rounds} is done", flush=True)
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    record = {
        **header("serve", torch.device("cpu"), vars(options)),
        "model": config["model"],
        "threads": torch.get_num_threads(),
        "cases": [summary(clients, options.tokens, rounds) for clients, rounds in results.items()],
    }
    print(table(record))
    if options.out is not None:
        write(options.out, record)


if __name__ == "__main__":
    main()
