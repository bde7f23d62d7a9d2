from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from aioredismq import (
    ConfigurationError,
    DecodeError,
    Message,
    MessageQueueError,
    Record,
    RejectMessage,
    RetryMessage,
)
from aioredismq._message import Entry

if TYPE_CHECKING:
    from collections.abc import Callable


class Settled:
    """Remember how a message was settled."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self.by: list[BaseException | None] = []

    def __call__(self, error: BaseException | None) -> None:
        """Settle."""
        self.by.append(error)


def message(
    settle: Callable[[BaseException | None], None] | None = None,
    decode: Callable[[], object] = lambda: None,
) -> Message:
    """Make one as the consumer does."""
    return Message(
        id="7-0",
        raw=b"null",
        headers={},
        content_type="application/json",
        attempt=2,
        queue="orders",
        group="billing",
        decode=decode,
        settle=settle,
    )


# The body.


@pytest.mark.parametrize("body", [None, 0, "", {"sku": 1}])
def test_a_body_is_decoded_once_and_when_it_is_asked_for(body: object) -> None:
    """None is a body too."""
    asked = []

    def decode() -> object:
        asked.append(1)
        return body

    got = message(decode=decode)

    assert not asked
    assert (got.body, got.body) == (body, body)
    assert len(asked) == 1


def test_a_body_that_cannot_be_read_is_remembered() -> None:
    """So that a batch handler's failure is charged to the message it came from."""
    error = DecodeError("not JSON")

    def decode() -> object:
        raise error

    got = message(decode=decode)

    assert got.broken is None
    for _ in range(2):
        with pytest.raises(DecodeError):
            _ = got.body
    assert got.broken is error


# Settling by hand.


def test_a_message_is_acknowledged() -> None:
    """Nothing was raised."""
    settle = Settled()
    got = message(settle)

    assert not got.is_settled
    got.ack()

    assert settle.by == [None]
    assert got.is_settled


def test_a_message_is_retried() -> None:
    """As if the handler had raised the signal."""
    settle = Settled()

    message(settle).retry("busy", delay=2.5)

    [signal] = settle.by
    assert isinstance(signal, RetryMessage)
    assert (signal.detail, signal.delay) == ("busy", 2.5)


def test_a_message_is_rejected() -> None:
    """As if the handler had raised the signal."""
    settle = Settled()

    message(settle).reject("no such order")

    [signal] = settle.by
    assert isinstance(signal, RejectMessage)
    assert signal.detail == "no such order"


SETTLE: list[Callable[[Message], None]] = [Message.ack, Message.retry, Message.reject]


@pytest.mark.parametrize("first", SETTLE)
@pytest.mark.parametrize("second", SETTLE)
def test_the_first_settlement_counts(
    first: Callable[[Message], None], second: Callable[[Message], None]
) -> None:
    """A second one raises, and changes nothing."""
    settle = Settled()
    got = message(settle)
    first(got)

    with pytest.raises(MessageQueueError, match="message 7-0 is settled already"):
        second(got)

    assert len(settle.by) == 1


def test_a_delay_that_cannot_be_waited_settles_nothing() -> None:
    """The handler's error decides then."""
    settle = Settled()
    got = message(settle)

    with pytest.raises(ConfigurationError, match="delay must be 0 seconds or more"):
        got.retry(delay=-1)

    assert not got.is_settled
    assert not settle.by


@pytest.mark.parametrize("settle", SETTLE)
def test_a_message_whose_handler_has_ended_is_settled_no_more(
    settle: Callable[[Message], None],
) -> None:
    """It may be another consumer's by then."""
    settled = Settled()
    got = message(settled)
    got.close()

    with pytest.raises(MessageQueueError, match="settled already"):
        settle(got)

    assert not settled.by


# Pulling.


async def test_leaving_the_block_acknowledges() -> None:
    """Success, as with a handler that returns."""
    settle = Settled()

    async with message(settle) as got:
        assert not got.is_settled

    assert settle.by == [None]


async def test_an_error_in_the_block_fails_the_attempt() -> None:
    """It is the message's failure, so it goes no further: the loop over messages goes on."""
    settle, error = Settled(), ValueError("bad")

    async with message(settle):
        raise error

    assert settle.by == [error]


async def test_leaving_the_block_leaves_what_was_settled_by_hand() -> None:
    """The first settlement counts here too."""
    settle = Settled()

    async with message(settle) as got:
        got.reject("no such order")

    assert len(settle.by) == 1


@pytest.mark.parametrize(
    "stop", [asyncio.CancelledError, KeyboardInterrupt, SystemExit]
)
async def test_what_ends_the_program_goes_further(stop: type[BaseException]) -> None:
    """The consumer is told, and hands the message back: it did not fail."""
    settle = Settled()

    with pytest.raises(stop):
        async with message(settle):
            raise stop

    assert [type(error) for error in settle.by] == [stop]


# Its lease.


class Lease:
    """What a consumer knows of the leases of what it holds."""

    def remaining(self, entry: Entry) -> float:
        """Some time is left."""
        return 2.5 if entry is HELD else 0.0

    async def extend(self, entry: Entry) -> bool:
        """It is renewed if it is held."""
        return entry is HELD


HELD = Entry(b"7-0", [b"body", b"1"], in_lane=False)


async def test_a_message_asks_for_its_own_lease() -> None:
    """How long it lasts, and to renew it."""
    got = Message(
        id="7-0",
        raw=b"1",
        headers={},
        content_type="application/json",
        attempt=1,
        queue="orders",
        group="billing",
        decode=lambda: 1,
        entry=HELD,
        leases=Lease(),
    )

    assert got.lease_remaining == 2.5
    assert await got.extend()


async def test_a_message_nobody_holds_has_no_lease() -> None:
    """As one made by hand, in a test of a handler."""
    got = message()

    assert got.lease_remaining == 0
    assert not await got.extend()


# How they show themselves.


def test_what_is_stored_is_shown_without_its_contents() -> None:
    """A log of many megabytes helps nobody."""
    record = Record("7-0", {"sku": 1}, {}, {b"body": b'{"sku":1}'})

    assert repr(message()) == (
        "Message(id='7-0', queue='orders', group='billing', attempt=2, 4 bytes)"
    )
    assert "fields" not in repr(record)


def test_an_entry_shows_where_it_was() -> None:
    """The stream or the lane."""
    entry = Entry(b"7-0", [b"body", b"1"], in_lane=True)

    assert repr(entry) == "Entry(b'7-0', [b'body', b'1'], in_lane=True)"
