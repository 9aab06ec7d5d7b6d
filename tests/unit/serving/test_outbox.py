from __future__ import annotations

from questlm.serving.outbox import Ending, Outbox


def test_text_is_taken_at_once_and_wakes_only_where_there_was_none() -> None:
    woken: list[int] = []
    outbox = Outbox(lambda: woken.append(1), 3)
    assert all(outbox.put(piece) for piece in "abc")
    assert len(woken) == 1
    assert not outbox.put("d")
    assert outbox.take() == ("abc", None)
    assert outbox.put("e")
    assert len(woken) == 2
    outbox.end(Ending("stop", 4))
    outbox.end(Ending("error"))
    assert outbox.take() == ("e", Ending("stop", 4))
    assert outbox.take() == ("", Ending("stop", 4))


def test_only_an_end_or_a_limit_is_no_failure() -> None:
    reasons = ("stop", "length", "cancelled", "unread", "closing", "error")
    assert [Ending(reason).is_failure for reason in reasons] == [False, False, True, True, True, True]
