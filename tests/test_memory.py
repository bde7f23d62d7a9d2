from __future__ import annotations

import gc

import pytest

from aioredismq._batch import Batch
from aioredismq._memory import Memory

KEY = "{orders}:sent:p"


def batch(number: int, first_sent: float | None = 0.0) -> Batch:
    """Make one that was sent at this time."""
    made = Batch(number, deadline=10.0)
    made.first_sent = first_sent
    return made


@pytest.mark.parametrize(
    ("produce_timeout", "seconds"), [(0.1, 600), (150, 600), (1000, 4000)]
)
def test_it_lasts_longer_than_a_batch_may_be_sent_again(
    produce_timeout: float, seconds: float
) -> None:
    """A retry in the last moment, and `produce_timeout` behind it, are well before its end."""
    memory = Memory(KEY, produce_timeout)
    last = seconds / 2 + produce_timeout

    assert memory.life_ms == seconds * 1000
    assert memory.may_be_retried(batch(1), seconds / 2)
    assert not memory.may_be_retried(batch(1), seconds / 2 + 1)
    doubt = batch(1)
    memory.lose(doubt)
    assert memory.may_be_sent_again(doubt, last)
    assert not memory.may_be_sent_again(doubt, seconds - 60)


def test_what_is_not_in_doubt_may_always_be_sent_again() -> None:
    """Each time it was sent it was refused, or it never was."""
    memory = Memory(KEY, 10)

    assert memory.may_be_sent_again(batch(1), 10_000)
    assert memory.may_be_retried(batch(1, first_sent=None), 10_000)


def test_it_is_renewed_once_a_minute() -> None:
    """And at once when the last renewal may not have been heard."""
    memory = Memory(KEY, 10)

    assert [memory.renews(now) for now in (0, 1, 59, 60, 61)] == [1, 0, 0, 1, 0]
    memory.renew_again()
    assert [memory.renews(now) for now in (62, 63)] == [1, 0]


def test_nothing_that_is_unresolved_is_forgotten() -> None:
    """The lowest number is told in steps, which is one server call less for most."""
    memory = Memory(KEY, 10)

    assert memory.low({}, 40, now=0) == 32
    assert memory.low({17: batch(17), 39: batch(39)}, 40, now=0) == 16
    assert memory.low({15: batch(15)}, 40, now=0) == 0


def test_what_is_in_doubt_is_remembered_while_somebody_may_retry_it() -> None:
    """As long as its error is kept, but not for ever; longer if it is being retried."""
    memory = Memory(KEY, 10)
    doubt = batch(3)
    memory.keep(doubt)

    assert memory.low({}, 100, now=300) == 0
    assert memory.low({}, 100, now=301) == 96
    assert memory.low({90: batch(90), 3: doubt}, 100, now=301) == 0
    del doubt
    gc.collect()
    assert memory.low({}, 100, now=0) == 96


def test_what_was_answered_late_is_in_doubt_no_more() -> None:
    """Its number need not be kept, though its error is."""
    memory = Memory(KEY, 10)
    doubt = batch(3)
    memory.keep(doubt)

    memory.drop(doubt)

    assert memory.low({}, 100, now=0) == 96


def test_where_nothing_can_be_late_nothing_is_left_behind() -> None:
    """Else it stays for as long as an original may be late."""
    memory = Memory(KEY, 10_000)
    assert memory.last_command() == (b"DEL", KEY)

    memory.lose(batch(1))

    assert memory.last_command() == (b"PEXPIRE", KEY, 600_000)


def test_a_doubt_somebody_keeps_is_not_forgotten_at_the_end() -> None:
    """It was sent, and nobody has heard what became of it."""
    memory = Memory(KEY, 10)
    doubt = batch(3)

    memory.keep(doubt)

    assert memory.last_command() == (b"PEXPIRE", KEY, 600_000)
