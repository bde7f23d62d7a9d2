from __future__ import annotations

from aioredismq._batch import Batch


def test_messages_are_written_one_behind_the_other() -> None:
    """Each with its number of fields in front, as the script reads them."""
    batch = Batch(7, deadline=1.0)

    batch.add([b"body", b"1"], 5)
    batch.add([b"body", b"2", b"trace", b"ab"], 12)

    assert batch.arguments == [2, b"body", b"1", 4, b"body", b"2", b"trace", b"ab"]
    assert (batch.number, batch.count, batch.size) == (7, 2, 17)
    assert not batch.has_times


def test_a_message_with_times_says_so() -> None:
    """In place of the bare number; the batch then needs the keys of what is delayed."""
    batch = Batch(7, deadline=1.0)

    batch.add([b"body", b"1"], 5, "500::")

    assert batch.arguments == ["2:500::", b"body", b"1"]
    assert batch.has_times
