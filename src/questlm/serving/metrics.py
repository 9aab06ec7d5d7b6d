"""Numbers about a server for Prometheus: https://prometheus.io/docs/practices/naming/."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters, gauges and histograms of one server; `text` is what /metrics gives.

    Attributes:
        requests: HTTP requests, by path and status.
        sequences: texts that ended, by reason.
        prompt_tokens, generated_tokens: counts of tokens.
        queue_seconds: from a request to its place in the batch.
        first_token_seconds: from a request to its first token.
        step_seconds: of a step of the model, for all sequences at once.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "questlm_requests", "HTTP requests by path and status", ["path", "status"], registry=registry
        )
        self.sequences = Counter("questlm_sequences", "Texts that ended, by reason", ["reason"], registry=registry)
        self.prompt_tokens = Counter("questlm_prompt_tokens", "Tokens of prompts", registry=registry)
        self.generated_tokens = Counter("questlm_generated_tokens", "Generated tokens", registry=registry)
        self.queue_seconds = self._histogram("queue", "From a request to its place in the batch")
        self.first_token_seconds = self._histogram("first_token", "From a request to its first token")
        self.step_seconds = self._histogram("step", "A step of the model, for all sequences at once")
        self._running = Gauge("questlm_sequences_running", "Texts being generated", registry=registry)
        self._waiting = Gauge("questlm_sequences_waiting", "Texts that wait for a place", registry=registry)

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Read how many texts run and wait by these functions."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(f"questlm_{name}_seconds", f"{what}, in seconds", buckets=_SECONDS, registry=self._registry)
