from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aioredismq.testing._doom import Doom, End, Fault

if TYPE_CHECKING:
    from collections.abc import Callable

PING = b"*1\r\n$4\r\nPING\r\n"
ECHO = b"*2\r\n$4\r\nECHO\r\n$5\r\nhello\r\n"
PONG = b"+PONG\r\n"
HELLO = b"$5\r\nhello\r\n"


def armed(fault: Fault) -> Callable[[bytes], Fault | None]:
    """Hand out a fault once, for the first request that is meant."""
    waiting = [fault]

    def fault_of(request: bytes) -> Fault | None:
        return waiting.pop() if waiting and waiting[0].containing in request else None

    return fault_of


def lost(containing: bytes = b"") -> Doom:
    """Lose the reply of the next such request."""
    return Doom(armed(Fault(containing, 0, End.RESET)))


def test_all_requests_go_on() -> None:
    """The doomed one too: the server is to do it."""
    doom = lost()

    assert doom.requests(PING + ECHO[:9]) == [PING + ECHO[:9]]
    assert doom.requests(ECHO[9:]) == [ECHO[9:]]


def test_the_reply_of_the_next_request_is_lost() -> None:
    """And all that comes behind it."""
    doom = lost()
    doom.requests(PING + ECHO)

    assert doom.replies(PONG + HELLO) == [End.RESET]
    assert doom.replies(PONG) == []


def test_replies_due_before_it_arrive() -> None:
    """Only the request that is meant loses its reply, among many under way."""
    doom = lost(b"ECHO")
    doom.requests(PING + PING + ECHO + PING)

    assert doom.replies(PONG) == [PONG]
    assert doom.replies(PONG + HELLO + PONG) == [PONG, End.RESET]


def test_the_line_ends_when_the_reply_begins() -> None:
    """That it has begun shows that the request is done; the rest need not be waited for."""
    doom = lost()
    doom.requests(ECHO)

    assert doom.replies(HELLO[:1]) == [End.RESET]


def test_a_request_that_is_meant_may_come_in_pieces() -> None:
    """What it must contain may be cut in two."""
    doom = lost(b"hello")
    for at in range(len(ECHO)):
        doom.requests(ECHO[at : at + 1])

    assert doom.replies(HELLO) == [End.RESET]


def test_a_request_that_is_not_meant_is_answered() -> None:
    """The fault waits for its own."""
    doom = lost(b"ECHO")
    doom.requests(PING)

    assert doom.replies(PONG) == [PONG]


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize("size", [0, 1, 5, len(HELLO) - 1, len(HELLO), 1000])
def test_a_truncated_reply_is_never_whole(size: int, step: int) -> None:
    """So many bytes of it arrive, however it comes in, but its last one never does."""
    doom = Doom(armed(Fault(b"ECHO", size, End.CLOSE)))
    doom.requests(PING + ECHO)
    replies = PONG + HELLO + PONG

    passed: list[bytes | End] = []
    for at in range(0, len(replies), step):
        passed += doom.replies(replies[at : at + step])

    *pieces, end = passed
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == (
        PONG + HELLO[: min(size, len(HELLO) - 1)]
    )
    assert end is End.CLOSE


def test_what_is_published_is_no_reply() -> None:
    """On a subscribed connection, messages come unasked for."""
    doom = lost(b"ECHO")
    doom.replies(PONG)
    doom.requests(ECHO)

    assert doom.replies(HELLO) == [End.RESET]
