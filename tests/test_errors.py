from __future__ import annotations

import inspect
import math
import re
from typing import TYPE_CHECKING

import pytest

from aioredismq import _errors as errors
from aioredismq import _scripts as scripts
from aioredismq._connection import Connection
from aioredismq._errors import (
    AuthenticationError,
    CommandRefusedError,
    ConfigurationError,
    HandlerSignatureError,
    MessageQueueError,
    PermissionDeniedError,
    PoolTooSmallError,
    PublishManyError,
    PublishUncertainError,
    RejectMessage,
    RetryMessage,
    ServerError,
    ServerFullError,
    ServerNotReadyError,
    WrongKeyTypeError,
    server_error,
)
from aioredismq._scripts import Script

if TYPE_CHECKING:
    from redis.asyncio import Redis

# The tree.


def drawn_tree() -> dict[str, str]:
    """Read the drawing at the top of the room: each error with the one it stands under."""
    above: dict[int, str] = {}
    tree: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([ │├└─]*)(\w+Error)\b", line)
        if found:
            depth = len(found[1])
            if tree or above:
                tree[found[2]] = above[max(level for level in above if level < depth)]
            above[depth] = found[2]
    return tree


def test_the_tree_drawn_is_the_tree_built() -> None:
    """Whoever reads the top of the room knows what catches what."""
    built = {
        name: next(base.__name__ for base in cls.__mro__[1:])
        for name, cls in vars(errors).items()
        if inspect.isclass(cls)
        and issubclass(cls, MessageQueueError)
        and cls is not MessageQueueError
    }

    assert built == drawn_tree()


def test_a_wrong_setting_is_a_value_error_too() -> None:
    """Whoever knows only Python's own errors catches it."""
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(HandlerSignatureError, TypeError)


@pytest.mark.parametrize("signal", [RetryMessage, RejectMessage])
def test_a_handlers_signals_are_not_under_the_root(signal: type[Exception]) -> None:
    """`except MessageQueueError` in a handler cannot swallow them."""
    assert not issubclass(signal, MessageQueueError)


@pytest.mark.parametrize("cls", [ConfigurationError, ServerError, RetryMessage])
def test_every_error_says_what_it_means(cls: type[Exception]) -> None:
    """A docstring of its own, not the one of the class above."""
    assert "__doc__" in vars(cls)


# What errors carry.


@pytest.mark.parametrize(
    ("available", "text"),
    [
        (1, "pool has 1 connection, this application needs at least 3: "),
        (2, "pool has 2 connections, this application needs at least 3: "),
    ],
)
def test_a_small_pool_is_told_with_the_mend(available: int, text: str) -> None:
    """Both numbers, and what to pass."""
    error = PoolTooSmallError(available, 3)

    assert str(error) == f"{text}pass max_connections=3"
    assert (error.available, error.needed) == (available, 3)


def test_a_servers_error_is_copied_for_each_who_waits() -> None:
    """One instance raised in many tasks would gather the tracebacks of them all."""
    error = server_error("OOM command not allowed")
    with pytest.raises(ServerFullError):
        raise error

    copy = error.again()

    assert copy is not error
    assert (type(copy), copy.args, copy.code) == (ServerFullError, error.args, "OOM")
    assert copy.__traceback__ is None


async def test_an_uncertain_send_is_sent_again_by_its_error() -> None:
    """`retry()` gives what the way to send again gives, however often it is called."""
    asked = []

    async def again() -> list[str]:
        asked.append(1)
        return ["1-0", "2-0"]

    error = PublishUncertainError("no answer", again, 1)

    assert await error.retry() == "2-0"
    assert await error.retry() == "2-0"
    assert await error.retry_batch() == ["1-0", "2-0"]
    assert len(asked) == 3


def test_a_half_done_produce_many_lists_what_is_stored() -> None:
    """In order, without those that are not known to be."""
    error = PublishManyError(
        "2 of 5", ["1-0", None, "3-0", None, None], {range(3, 5): doubt("4-0", "5-0")}
    )

    assert error.stored == ["1-0", "3-0"]
    assert error.ids == ["1-0", None, "3-0", None, None]
    assert error.uncertain == [3, 4]


def doubt(*answers: str | MessageQueueError) -> PublishUncertainError:
    """Make a doubt that is resolved with these ids, or fails to be."""

    async def again() -> list[str]:
        for answer in answers:
            if isinstance(answer, MessageQueueError):
                raise answer
        return [answer for answer in answers if isinstance(answer, str)]

    return PublishUncertainError("no answer", again)


async def test_a_half_done_produce_many_finds_out_what_became_of_the_rest() -> None:
    """What was refused is not stored; whoever has no answer may ask again."""
    again = doubt("7-0", "8-0")
    error = PublishManyError(
        "1 of 9",
        ["0-0", *[None] * 8],
        {
            range(1, 3): doubt("1-0", "2-0"),
            range(3, 5): doubt(ServerFullError("OOM")),
            range(5, 6): doubt("5-0"),
            range(7, 9): doubt(again),
        },
    )

    with pytest.raises(PublishManyError, match="2 messages are in doubt still") as one:
        await error.retry()

    assert one.value.__cause__ is again
    assert one.value.uncertain == [7, 8]
    known = ["0-0", "1-0", "2-0", None, None, "5-0", None]
    assert one.value.ids == [*known, None, None]
    assert error.uncertain == [1, 2, 3, 4, 5, 7, 8]
    assert await one.value.retry() == [*known, "7-0", "8-0"]


async def test_what_is_too_old_to_be_asked_for_stays_in_doubt() -> None:
    """Nobody will know; what can be known is told."""
    late = MessageQueueError("too late")
    error = PublishManyError(
        "0 of 3",
        [None] * 3,
        {
            range(1): doubt("1-0"),
            range(1, 2): doubt(late),
            range(2, 3): doubt("3-0"),
        },
    )

    for _ in range(2):
        with pytest.raises(PublishManyError, match="too late") as raised:
            await error.retry()
        error = raised.value
        assert (error.ids, error.uncertain) == (["1-0", None, "3-0"], [1])


def test_a_signal_carries_its_words() -> None:
    """And the delay that was asked for."""
    retry, reject = RetryMessage("busy", delay=1.5), RejectMessage("never")

    assert (retry.detail, retry.delay, str(retry)) == ("busy", 1.5, "busy")
    assert (reject.detail, str(reject)) == ("never", "never")
    assert RetryMessage().delay is None


@pytest.mark.parametrize("delay", [-1, -0.001, math.nan, math.inf, "soon", True])
def test_a_delay_that_cannot_be_waited_is_refused(delay: float) -> None:
    """Where it is asked for, not in the room that would have to wait."""
    with pytest.raises(ConfigurationError, match=f"delay must be .*, got {delay!r}"):
        RetryMessage(delay=delay)


# What Redis says.


@pytest.mark.parametrize(
    ("text", "cls", "code"),
    [
        ("LOADING Redis is loading the dataset", ServerNotReadyError, "LOADING"),
        ("BUSY Redis is busy running a script", ServerNotReadyError, "BUSY"),
        ("MASTERDOWN Link with MASTER is down", ServerNotReadyError, "MASTERDOWN"),
        ("READONLY You can't write against", ServerNotReadyError, "READONLY"),
        ("MOVED 3999 127.0.0.1:6381", ServerNotReadyError, "MOVED"),
        ("ASK 3999 127.0.0.1:6381", ServerNotReadyError, "ASK"),
        ("TRYAGAIN Multiple keys request", ServerNotReadyError, "TRYAGAIN"),
        ("CLUSTERDOWN The cluster is down", ServerNotReadyError, "CLUSTERDOWN"),
        ("UNBLOCKED client unblocked via", ServerNotReadyError, "UNBLOCKED"),
        ("OOM command not allowed", ServerFullError, "OOM"),
        ("MISCONF Redis is configured to save", ServerFullError, "MISCONF"),
        ("NOREPLICAS Not enough good replicas", ServerFullError, "NOREPLICAS"),
        ("NOAUTH Authentication required.", AuthenticationError, "NOAUTH"),
        ("WRONGPASS invalid username-password", AuthenticationError, "WRONGPASS"),
        ("ERR invalid password", AuthenticationError, "WRONGPASS"),
        ("NOPERM this user has no permissions", PermissionDeniedError, "NOPERM"),
        ("WRONGTYPE Operation against a key", WrongKeyTypeError, "WRONGTYPE"),
        ("NOSCRIPT No matching script", CommandRefusedError, "NOSCRIPT"),
        ("STALE batch 3 was given up", CommandRefusedError, "STALE"),
        ("ERR unknown command", CommandRefusedError, "ERR"),
        ("", CommandRefusedError, ""),
    ],
)
def test_an_error_reply_is_known_by_its_first_word(
    text: str, cls: type[ServerError], code: str
) -> None:
    """What has no class of its own is refused, with its code."""
    error = server_error(text)

    assert (type(error), error.code, str(error)) == (cls, code, text)


@pytest.mark.parametrize(
    ("text", "cls", "code"),
    [
        (
            "ERR Error running script (call to f_ab12): @user_script:12: "
            "@user_script: 12: -OOM command not allowed when used memory > 'maxmemory'.",
            ServerFullError,
            "OOM",
        ),
        (
            "ERR Error running script (call to f_ab12): @user_script:3: "
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            WrongKeyTypeError,
            "WRONGTYPE",
        ),
        (
            "WRONGTYPE Operation against a key holding the wrong kind of value "
            "script: ab12, on @user_script:3.",
            WrongKeyTypeError,
            "WRONGTYPE",
        ),
        (
            "@user_script: 45: -OOM command not allowed when used memory > 'maxmemory'.",
            ServerFullError,
            "OOM",
        ),
        (
            "ERR Error running script (call to f_ab12): @user_script:3: user_script:3: "
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            WrongKeyTypeError,
            "WRONGTYPE",
        ),
        (
            "ERR user_script:1: too many results to unpack script: ab12, on @user_script:1.",
            CommandRefusedError,
            "too",
        ),
    ],
)
def test_an_error_inside_a_script_is_known_by_the_word_inside(
    text: str, cls: type[ServerError], code: str
) -> None:
    """6.2 puts words of its own in front, later ones behind."""
    error = server_error(text)

    assert (type(error), error.code) == (cls, code)


def script(text: bytes) -> Script:
    """Make a script of its own for a test."""
    return Script("test", text, b"0" * 40)


@pytest.mark.parametrize(
    ("text", "cls", "code"),
    [
        (b"redis.call('XLEN', KEYS[1])", WrongKeyTypeError, "WRONGTYPE"),
        (b"redis.call('NOSUCH')", CommandRefusedError, None),
        (
            b"return redis.error_reply('STALE batch 3')",
            CommandRefusedError,
            "STALE",
        ),
        (b"return redis.pcall('XLEN', KEYS[1])", WrongKeyTypeError, "WRONGTYPE"),
        (
            b"local reply = redis.pcall('XLEN', KEYS[1]) if reply.err then error(reply.err) end",
            WrongKeyTypeError,
            "WRONGTYPE",
        ),
        (
            b"redis.call('XGROUP', 'CREATE', 's' .. KEYS[1], 'g', '0')",
            CommandRefusedError,
            "ERR",
        ),
        (
            b"redis.call('XPENDING', 's' .. KEYS[1], 'g')",
            CommandRefusedError,
            "NOGROUP",
        ),
    ],
)
async def test_what_this_server_says_inside_a_script_is_understood(
    url: str, name: str, client: Redis, text: bytes, cls: type[ServerError], code: str
) -> None:
    """Each version words it in its own way; the class is the same."""
    await client.set(name, "a string")
    async with Connection(url) as connection:
        link = await connection.link(name)

        with pytest.raises(ServerError) as raised:
            await link.run(script(text), [name], [])

    assert type(raised.value) is cls
    assert code in (None, raised.value.code)


async def test_a_script_the_server_does_not_know_is_sent_whole(
    url: str, name: str, client: Redis
) -> None:
    """NOSCRIPT is no error for whoever runs one."""
    await client.script_flush()
    async with Connection(url) as connection:
        link = await connection.link(name)

        answer = await link.run(scripts.SETTLE, [name], ["group", "1-0"])

    assert answer == 0
