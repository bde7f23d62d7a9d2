from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from anyio import create_task_group, fail_after

from aioredismq import ExponentialBackoff, Message, MessageQueueError
from aioredismq._message import Entry
from aioredismq._outcome import (
    Ack,
    DeadLetter,
    Failure,
    Outcome,
    Release,
    Retry,
    decide,
)
from aioredismq._puller import Puller
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable


EXPIRED = DeadLetter(Failure("expired", "too late"))


class Pulling:
    """A puller, and what it settles."""

    def __init__(self) -> None:
        """Nothing is offered yet."""
        self.outcomes: dict[bytes, Outcome] = {}
        self.unhandled: dict[bytes, Outcome] = {}
        self.puller = Puller(
            unhandled=lambda entry: self.unhandled.get(entry.id),
            make=make,
            decide=decide_by_default,
            settle=self._settle,
            until_sound=self._until_sound,
        )
        self.sound = asyncio.Event()
        self.sound.set()

    async def _until_sound(self) -> None:
        await self.sound.wait()

    def _settle(self, entry: Entry, outcome: Outcome) -> None:
        assert entry.id not in self.outcomes
        self.outcomes[entry.id] = outcome

    async def following(self) -> Message:
        """Pull one message, which must be there soon."""
        with fail_after(8):
            message = await self.puller.following()
        assert message is not None
        return message


def make(entry: Entry, settle: Callable[[BaseException | None], None]) -> Message:
    """Make a message of an entry."""
    return Message(
        id=entry.id.decode(),
        raw=b"",
        headers={},
        content_type="application/json",
        attempt=1,
        queue="orders",
        group="billing",
        decode=lambda: None,
        settle=settle,
    )


def decide_by_default(error: BaseException, entry: Entry) -> Outcome:
    """Say what becomes of a failure."""
    return decide(error, 1, ExponentialBackoff(initial=0), 5)


def entry(number: int = 1) -> Entry:
    """Make an entry."""
    return Entry(b"%d-0" % number, [], in_lane=False)


async def test_a_worker_offers_its_entry_until_it_is_settled() -> None:
    """So as many are out at once as there are workers."""
    pulling = Pulling()
    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry()])
        message = await pulling.following()
        assert not pulling.outcomes

        message.ack()

    assert message.id == "1-0"
    assert pulling.outcomes == {b"1-0": Ack()}


async def test_what_nobody_is_to_see_is_not_offered() -> None:
    """It is settled as it is to be, and its worker goes on."""
    pulling = Pulling()
    pulling.unhandled[b"1-0"] = EXPIRED

    await pulling.puller.run([entry()])

    assert pulling.outcomes == {b"1-0": EXPIRED}


async def test_what_expires_while_it_is_offered_is_not_given_out() -> None:
    """It may wait for long until somebody pulls; who pulls then gets the next one."""
    pulling = Pulling()
    async with create_task_group() as tasks:
        for number in (1, 2, 3):
            tasks.start_soon(pulling.puller.run, [entry(number)])
        await asyncio.sleep(0)
        pulling.unhandled = {b"1-0": EXPIRED, b"2-0": Ack()}

        message = await pulling.following()
        message.ack()

    assert message.id == "3-0"
    assert pulling.outcomes == {b"1-0": EXPIRED, b"2-0": Ack(), b"3-0": Ack()}


async def test_what_expires_while_it_is_pulled_and_cut_off_is_settled_once() -> None:
    """Its worker may be cancelled before it hears of it: then it is handed back."""
    pulling = Pulling()
    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry()])
        await asyncio.sleep(0)
        pulling.unhandled[b"1-0"] = EXPIRED
        tasks.start_soon(pulling.puller.following)
        await asyncio.sleep(0)

        tasks.cancel_scope.cancel()

    assert len(pulling.outcomes) == 1


async def test_what_somebody_else_has_meanwhile_is_not_given_out() -> None:
    """Nothing is, before leases are known to be sound; what is lost by then is withdrawn."""
    pulling = Pulling()
    got: list[Message | None] = []

    async def pull() -> None:
        got.append(await pulling.puller.following())

    async with create_task_group() as tasks:
        for number in (1, 2, 3):
            tasks.start_soon(pulling.puller.run, [entry(number)])
        await asyncio.sleep(0)
        pulling.sound.clear()
        tasks.start_soon(pull)
        await asyncio.sleep(0)
        assert not got

        pulling.puller.withdraw(b"1-0", in_lane=False)
        pulling.puller.withdraw(b"2-0", in_lane=True)
        pulling.sound.set()
        await eventually(lambda: len(got) == 1)
        assert got[0] is not None
        got[0].ack()
        pulling.puller.end()

    assert got[0].id == "2-0"
    assert pulling.outcomes[b"1-0"] == Release()


async def test_who_waits_for_sound_leases_is_told_of_the_end() -> None:
    """The consumer ends while Redis is away: the iteration does, too."""
    pulling = Pulling()
    pulling.sound.clear()
    got: list[Message | None] = []

    async def pull() -> None:
        got.append(await pulling.puller.following())

    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry(1)])
        tasks.start_soon(pull)
        await asyncio.sleep(0)
        pulling.puller.end()
        pulling.sound.set()
        with fail_after(8):
            await eventually(lambda: bool(got))

    assert got == [None]
    assert pulling.outcomes == {b"1-0": Release()}


async def test_messages_come_in_the_order_they_were_offered() -> None:
    """Whoever pulls, gets the oldest."""
    pulling = Pulling()
    async with create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(pulling.puller.run, [entry(number)])
        pulled = [await pulling.following() for _ in range(5)]
        for message in pulled:
            message.ack()

    assert [message.id for message in pulled] == [f"{n}-0" for n in range(5)]


async def test_several_may_pull_at_once() -> None:
    """Each message goes to one of them."""
    pulling = Pulling()
    pulled: list[str] = []

    async def pull() -> None:
        while (message := await pulling.puller.following()) is not None:
            pulled.append(message.id)
            message.ack()

    async with create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(pull)
        for number in range(9):
            tasks.start_soon(pulling.puller.run, [entry(number)])
        await eventually(lambda: len(pulling.outcomes) == 9)
        pulling.puller.end()

    assert sorted(pulled) == [f"{number}-0" for number in range(9)]


async def test_leaving_the_block_acknowledges() -> None:
    """As returning from a handler does."""
    pulling = Pulling()
    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry()])
        async with await pulling.following():
            assert not pulling.outcomes

    assert pulling.outcomes == {b"1-0": Ack()}


async def test_an_error_in_the_block_fails_the_message_and_goes_no_further() -> None:
    """As in a handler."""
    pulling = Pulling()
    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry()])
        async with await pulling.following():
            raise ValueError("no")

    assert pulling.outcomes == {b"1-0": Retry(0.0, "no")}


async def test_an_error_that_is_no_exception_fails_the_message_and_goes_on() -> None:
    """Handed back untried, it would come again for ever."""
    pulling = Pulling()

    class PanicError(BaseException):
        """As extensions written in Rust raise."""

    async def handle() -> None:
        async with await pulling.following():
            raise PanicError("no")

    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry()])
        with pytest.raises(PanicError):
            await handle()

    assert pulling.outcomes == {b"1-0": Retry(0.0, "no")}


async def test_what_was_settled_by_hand_in_the_block_counts() -> None:
    """What is raised afterwards is not its failure, and goes on."""
    pulling = Pulling()

    async def handle() -> None:
        async with await pulling.following() as message:
            message.retry("busy", delay=3)
            raise ValueError("afterwards")

    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry()])
        with pytest.raises(ValueError, match="afterwards"):
            await handle()

    assert pulling.outcomes == {b"1-0": Retry(3, "busy")}


async def test_a_block_that_is_cancelled_hands_its_message_back() -> None:
    """At once: nobody is at work on it any more, and it did not fail."""
    pulling = Pulling()
    inside = asyncio.Event()

    async def handle() -> None:
        async with await pulling.following():
            inside.set()
            await asyncio.sleep(60)

    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry()])
        async with create_task_group() as handling:
            handling.start_soon(handle)
            await eventually(inside.is_set)
            handling.cancel_scope.cancel()
        with fail_after(8):
            await eventually(lambda: bool(pulling.outcomes))

    assert pulling.outcomes == {b"1-0": Release()}


async def test_at_the_end_iterations_end_and_offers_are_handed_back() -> None:
    """What nobody has taken keeps no worker waiting; what was taken may be finished."""
    pulling = Pulling()
    async with create_task_group() as tasks:
        for number in (1, 2, 3):
            tasks.start_soon(pulling.puller.run, [entry(number)])
        taken = await pulling.following()

        pulling.puller.end()

        assert await pulling.puller.following() is None
        await eventually(lambda: len(pulling.outcomes) == 2)
        taken.ack()

    assert pulling.outcomes == {b"1-0": Ack(), b"2-0": Release(), b"3-0": Release()}


async def test_who_waits_for_a_message_is_told_of_the_end() -> None:
    """An iteration ends; it does not hang."""
    pulling = Pulling()
    got: list[Message | None] = []

    async def pull() -> None:
        got.append(await pulling.puller.following())

    async with create_task_group() as tasks:
        tasks.start_soon(pull)
        await asyncio.sleep(0)
        pulling.puller.end()

    assert got == [None]


async def test_a_worker_that_is_cancelled_hands_its_entry_back() -> None:
    """Whoever still has the message can settle it no more."""
    pulling = Pulling()
    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry()])
        message = await pulling.following()

        tasks.cancel_scope.cancel()

    assert pulling.outcomes == {b"1-0": Release()}
    with pytest.raises(MessageQueueError, match="settled already"):
        message.ack()


async def test_settling_at_the_moment_of_a_cancellation_is_no_error() -> None:
    """The worker has ended, and has not run yet: its entry is handed back all the same."""
    pulling = Pulling()
    async with create_task_group() as tasks:
        tasks.start_soon(pulling.puller.run, [entry()])
        message = await pulling.following()

        tasks.cancel_scope.cancel()
        message.ack()

    assert pulling.outcomes == {b"1-0": Release()}
