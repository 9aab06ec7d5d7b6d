from __future__ import annotations

from questlm.serving.metrics import Metrics


def test_numbers_are_in_the_format_of_prometheus() -> None:
    metrics = Metrics()
    metrics.watch(lambda: 3, lambda: 5)
    metrics.requests.labels("/v1/models", 200).inc()
    metrics.sequences.labels("stop").inc()
    metrics.step_seconds.observe(0.02)
    lines = metrics.text().decode().splitlines()
    for line in (
        'questlm_requests_total{path="/v1/models",status="200"} 1.0',
        'questlm_sequences_total{reason="stop"} 1.0',
        "questlm_sequences_running 3.0",
        "questlm_sequences_waiting 5.0",
        'questlm_step_seconds_bucket{le="0.025"} 1.0',
        "questlm_step_seconds_count 1.0",
    ):
        assert line in lines


def test_servers_in_one_process_count_by_themselves() -> None:
    first, second = Metrics(), Metrics()
    first.generated_tokens.inc(7)
    assert b"questlm_generated_tokens_total 7.0" in first.text()
    assert b"questlm_generated_tokens_total 0.0" in second.text()
