from __future__ import annotations

import asyncio

import pytest

from aioredismq import PublishUncertainError, ServerFullError
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


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        (None, None, False),
        (None, 1.0, True),
        (1.0, None, True),
        (1.0, 1.0, False),
        (1.0, 1.5, False),
        (1.5, 1.0, False),
        (1.0, 1.6, True),
    ],
)
def test_those_who_end_at_about_the_same_time_may_share_a_batch(
    first: float | None, second: float | None, *, differ: bool
) -> None:
    """Within a twentieth of what they may take; who came at once only with his like."""
    batch = Batch(7, deadline=1.0)
    batch.late = first

    assert batch.ends_at_another_time(second, 10.0) is differ


async def waited_for(count: int) -> Batch:
    """Make a batch for which so many wait, and somebody for all of it; the second has left."""
    loop = asyncio.get_running_loop()
    batch = Batch(7, deadline=1.0)
    batch.waiters = [loop.create_future() for _ in range(count)]
    batch.waiters[1].cancel()
    batch.wait_as_one(loop.create_future())
    return batch


async def test_everybody_gets_his_id() -> None:
    """Or all of them."""
    batch = await waited_for(3)

    batch.fulfil(["a", "b", "c"])

    assert batch.whole is not None
    assert await batch.waiters[0] == "a"
    assert await batch.waiters[2] == "c"
    assert await batch.whole == ["a", "b", "c"]


async def test_everybody_gets_an_error_of_his_own() -> None:
    """One instance raised in many tasks would gather the tracebacks of them all."""
    batch = await waited_for(3)

    batch.refuse(ServerFullError("OOM"))

    assert batch.whole is not None
    waiting = [batch.waiters[0], batch.waiters[2], batch.whole]
    errors = [future.exception() for future in waiting]
    assert {type(error) for error in errors} == {ServerFullError}
    assert len(set(map(id, errors))) == 3


async def test_everybody_in_doubt_may_ask_for_his_own_id() -> None:
    """Of a retry that is in doubt again he hears why, and may ask again."""
    batch = await waited_for(3)
    reason = ServerFullError("OOM")
    answers: list[list[str] | PublishUncertainError] = [["a", "b", "c"]]

    async def retry(_: Batch) -> list[str]:
        answer = answers.pop()
        if isinstance(answer, PublishUncertainError):
            raise answer from reason
        return answer

    batch.leave_in_doubt("no answer", None, retry)
    first = batch.waiters[2].exception()
    assert isinstance(first, PublishUncertainError)
    assert str(first).startswith("no answer: the message may or may not be stored; ")
    answers.append(PublishUncertainError("refused", first.retry_batch, 2))
    with pytest.raises(PublishUncertainError, match=r"^refused$") as raised:
        await first.retry()

    assert raised.value.__cause__ is reason
    assert await raised.value.retry() == "c"
    assert batch.whole is not None
    for other in (batch.waiters[0], batch.whole):  # or the loop complains of them
        assert isinstance(other.exception(), PublishUncertainError)
