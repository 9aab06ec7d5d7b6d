"""Texts of a fake model go on letter by letter: behind "A" comes "BCD..."."""

from __future__ import annotations

import threading

import pytest

from helpers.serving import Client, FakeBatch, wait_until
from questlm.config import GenerationOptions
from questlm.errors import ConfigError
from questlm.serving.outbox import Ending
from questlm.serving.scheduler import Closing, QueueFull

A = 33  # the id of "A"; those of other letters follow in order


def options(count: int, **more) -> GenerationOptions:
    return GenerationOptions(max_new_tokens=count, **more)


def test_each_text_ends_at_its_limit_a_stop_string_or_the_end_of_text(start) -> None:
    scheduler, metrics = start(FakeBatch(2))
    clients = [
        Client([A], options(5)),
        Client([A, A + 3], options(50, stop=("HI", "JK"))),
        Client([252], options(50)),  # the fifth token is 0, the end of text
        Client([252], options(7, stop_at_end=False)),
    ]
    scheduler.submit([client.job for client in clients])
    assert [client.wait() for client in clients] == [
        Ending("length", 5), Ending("stop", 5), Ending("stop", 4), Ending("length", 7)
    ]  # fmt: skip
    assert [client.text for client in clients[:2]] == ["BCDEF", "EFG"]
    assert b'questlm_sequences_total{reason="length"} 2.0' in metrics.text()
    assert b"questlm_generated_tokens_total 21.0" in metrics.text()


def test_jobs_join_in_their_order_as_places_get_free_and_no_more_run_than_may(start) -> None:
    batch = FakeBatch(3)
    scheduler, metrics = start(batch)
    clients = [Client([number], options(1 + number % 5)) for number in range(1, 40)]
    scheduler.submit([client.job for client in clients])
    assert all(client.wait().reason == "length" for client in clients)
    assert batch.joined == [[number] for number in range(1, 40)]
    assert batch.most == 3
    assert batch.steps < sum(1 + number % 5 for number in range(1, 40)) / 2
    assert b"questlm_queue_seconds_count 39.0" in metrics.text()


def test_a_short_text_ends_while_a_long_one_goes_on(start) -> None:
    scheduler, _ = start(FakeBatch(2, seconds=0.001))
    long, short = Client([A], options(10_000, stop_at_end=False), room=20_000), Client([A], options(3))
    scheduler.submit([long.job])
    wait_until(lambda: long.job.tokens > 3)
    scheduler.submit([short.job])
    assert short.wait() == Ending("length", 3)
    assert not long.has_ended()
    scheduler.cancel(long.job)
    assert long.wait().reason == "cancelled"


def test_too_many_are_refused_together_and_told_when_to_come_again(start) -> None:
    batch = FakeBatch(2, seconds=0.001)
    scheduler, _ = start(batch, queue=3)
    clients = [Client([A], options(10**6, stop_at_end=False), room=10**6) for _ in range(5)]
    with pytest.raises(QueueFull):
        scheduler.submit([client.job for client in (*clients, clients[0])])
    scheduler.submit([client.job for client in clients])
    wait_until(lambda: len(batch.joined) == 2)
    with pytest.raises(QueueFull) as refused:
        scheduler.submit([Client([A], options(1)).job])
    assert 1 <= refused.value.seconds <= 60
    scheduler.cancel(clients[4].job)  # waits
    scheduler.cancel(clients[4].job)  # again, without effect
    assert clients[4].wait() == Ending("cancelled", 0)
    scheduler.submit([Client([A], options(1)).job])


def test_a_client_that_does_not_read_loses_its_place_and_no_other_does(start) -> None:
    batch = FakeBatch(2)
    scheduler, _ = start(batch)
    idle, reading = Client([A], options(100), room=10), Client([A], options(500, stop_at_end=False), room=500)
    scheduler.submit([idle.job, reading.job])
    assert reading.wait() == Ending("length", 500)
    assert idle.wait().reason == "unread"
    assert len(idle.text) == 10


@pytest.mark.parametrize("seconds", [0, 60])
def test_closing_refuses_new_jobs_and_ends_the_others_in_time(start, seconds: float) -> None:
    scheduler, _ = start(FakeBatch(1, seconds=0.002))
    assert scheduler.is_ready
    clients = [Client([A], options(30, stop_at_end=False)) for _ in range(3)]
    scheduler.submit([client.job for client in clients])
    wait_until(lambda: clients[0].job.tokens > 2)
    scheduler.close(seconds)
    assert not scheduler.is_ready
    with pytest.raises(Closing):
        scheduler.submit([Client([A], options(1)).job])
    scheduler.join()
    endings = [client.wait() for client in clients]
    if seconds:
        assert endings == [Ending("length", 30)] * 3
    else:
        assert [ending.reason for ending in endings] == ["closing"] * 3
        assert all("ending" in ending.message for ending in endings)


def test_a_failed_step_ends_what_it_was_for_and_the_next_requests_go_on(start, caplog) -> None:
    batch = FakeBatch(4)
    batch.failures = [RuntimeError("a kernel failed")]
    scheduler, _ = start(batch)
    clients = [Client([A], options(3)) for _ in range(2)]
    scheduler.submit([client.job for client in clients])
    assert [client.wait().reason for client in clients] == ["error", "error"]
    assert "a kernel failed" in caplog.text
    later = Client([A], options(3))
    scheduler.submit([later.job])
    assert later.wait() == Ending("length", 3)


def test_without_memory_the_longest_text_ends(start) -> None:
    batch = FakeBatch(2)
    batch.failures = [ConfigError("keys and values need 9 GB")]
    scheduler, _ = start(batch)
    long, short = Client([A] * 9, options(5)), Client([A], options(5))
    scheduler.submit([short.job, long.job])
    assert long.wait() == Ending("error", 0, "keys and values need 9 GB")
    assert short.wait() == Ending("length", 5)


def test_logits_that_are_not_finite_end_one_text(start) -> None:
    batch = FakeBatch(2)
    batch.broken = {A + 2}
    scheduler, _ = start(batch)
    clients = [Client([A], options(5)), Client([A + 4], options(5))]
    scheduler.submit([client.job for client in clients])
    assert clients[0].wait().reason == "error"
    assert "not finite" in clients[0].wait().message
    assert clients[1].wait() == Ending("length", 5)


def test_a_prompt_or_token_that_cannot_be_decoded_fails_alone(start) -> None:
    scheduler, _ = start(FakeBatch(3))
    clients = [Client([-7], options(5)), Client([A], options(5))]
    scheduler.submit([client.job for client in clients])
    assert clients[0].wait() == Ending("error", 0, "the prompt cannot be read by the model")
    assert clients[1].wait() == Ending("length", 5)


def test_jobs_come_and_are_cancelled_from_many_threads(start) -> None:
    batch = FakeBatch(4)
    scheduler, _ = start(batch, queue=1000)

    def use(number: int) -> None:
        for count in range(1, 12):
            client = Client([A], options(count))
            scheduler.submit([client.job])
            if (number + count) % 3 == 0:
                scheduler.cancel(client.job)
                assert client.wait().reason in ("cancelled", "length")
            else:
                assert client.wait() == Ending("length", count)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: not batch.sequences)
