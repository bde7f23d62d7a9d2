"""Everything this package raises, as one tree.

    MessageQueueError
    ├── ConfigurationError            also a ValueError: refused before anything is sent
    │   ├── HandlerSignatureError     a handler asks for what it cannot get
    │   ├── PoolTooSmallError         fewer connections than this application needs
    │   └── QueueMismatchError        another process uses the queue by other rules
    ├── NotInitializedError           used before `initialize()` or after `close()`
    ├── WrongLoopError                used on a second event loop, or after a fork
    ├── EncodeError                   a body or header that cannot be sent
    ├── DecodeError                   a stored entry that is not what the handler asks for
    ├── PublishUncertainError         no answer: stored or not, `retry()` is safe
    ├── PublishManyError              `produce_many` stopped in the middle; says what is stored
    ├── BacklogError                  too many sends are waiting and `produce_timeout` has passed
    ├── QueueDeletedError             the queue or group was deleted on purpose
    └── ServerError                   what Redis, or the line to it, said
        ├── ConnectionLostError       no connection, or it broke before the answer came
        ├── ServerNotReadyError       loading, failing over, moved: passes by itself
        ├── ServerFullError           writes are refused (memory, disk, replicas): nothing stored
        ├── AuthenticationError       user or password
        ├── PermissionDeniedError     the user may not run the command
        ├── WrongKeyTypeError         the key holds something that is not a queue's
        ├── UnsupportedServerError    too old, or not a Redis server
        └── CommandRefusedError       any other error reply

What a handler raises to steer (`RetryMessage`, `RejectMessage`) is not under the root, so that
`except MessageQueueError` in a handler cannot swallow it.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import Self


class MessageQueueError(Exception):
    """The root of what this package raises."""


class ConfigurationError(MessageQueueError, ValueError):
    """A setting breaks a rule; the text has the rule and the offender. Nothing was sent."""


class HandlerSignatureError(ConfigurationError, TypeError):
    """A handler's parameters cannot be served; found when it is registered."""


class PoolTooSmallError(ConfigurationError):
    """The pool has fewer connections than the queues and consumers built on it need.

    Found at start: an exhausted pool in operation would stop acknowledgements.

    Attributes:
        available: What the pool may open at most.
        needed: What this application needs at least.
    """

    def __init__(self, available: int, needed: int) -> None:
        """State both numbers and the mend."""
        noun = "connection" if available == 1 else "connections"
        super().__init__(
            f"pool has {available} {noun}, this application needs at least {needed}: "
            f"pass max_connections={needed}"
        )
        self.available: int = available
        self.needed: int = needed


class QueueMismatchError(ConfigurationError):
    """The queue is already in use with another setting all its users must share."""


class NotInitializedError(MessageQueueError):
    """The object is not open: call `await initialize()` or use `async with`. Nothing was sent."""


class WrongLoopError(MessageQueueError):
    """The object belongs to another event loop, or to the parent of this process.

    Make one queue (and `Connection`) per loop and process. Nothing was sent.
    """


class EncodeError(MessageQueueError):
    """The body or a header cannot be sent as asked. Nothing was sent."""


class DecodeError(MessageQueueError):
    """A stored entry cannot be made into what the handler asks for.

    The entry is dead-lettered with reason `decode`: it neither loops nor disappears.
    """


class BacklogError(MessageQueueError):
    """The server is away and the bound on waiting sends was full for `produce_timeout`.

    Nothing was sent for this call; producing it again is safe.
    """


class PublishUncertainError(MessageQueueError):
    """No answer came within `produce_timeout`: the message may or may not be in the stream.

    It is in doubt, too, when its line was lost before it was refused (`__cause__` says why): what
    was sent on that line may still arrive.

    `await error.retry()` is safe: it sends the same identity again, and the message is stored
    once, whichever happened the first time. Calling `produce()` again may store it twice.
    """

    def __init__(
        self, text: str, again: Callable[[], Awaitable[Sequence[str]]], at: int = 0
    ) -> None:
        """Keep the way to send the same identity again.

        Args:
            text: What is not known, and why.
            again: Sends the whole batch again, and gives the ids of all that it has.
            at: Which of them is the message's.
        """
        super().__init__(text)
        self._again = again
        self._at = at

    async def retry(self) -> str:
        """Send the same message under its first identity again.

        Returns:
            The id under which it is stored, once.

        Raises:
            PublishUncertainError: Still no answer; this error's `retry()` is safe again.
            MessageQueueError: The identity is too old to be recognised by the server, or the
                server refuses the message.

        Cancellation: it may be stored, once; `retry()` is safe again.
        """
        return (await self._again())[self._at]

    async def retry_batch(self) -> Sequence[str]:
        """Do as `retry` with all messages that travelled together; returns their ids, in order."""
        return await self._again()


class PublishManyError(MessageQueueError):
    """`produce_many` stopped before its end; the cause is in `__cause__`.

    `await error.retry()` finds out what became of those in doubt, without storing any twice. What
    has no id then is not stored and may be sent anew:

        except PublishManyError as error:
            ids = await error.retry()
            missing = [body for body, id in zip(bodies, ids) if id is None]

    Attributes:
        ids: For each body taken from the iterable, in order: the id it is stored under, or None
            when it is not known to be stored. Bodies behind the last one were not looked at.
        uncertain: Positions in `ids` that may or may not be stored.
    """

    def __init__(
        self,
        text: str,
        ids: Sequence[str | None],
        doubts: Mapping[range, PublishUncertainError],
    ) -> None:
        """Keep what is known of each body.

        Args:
            text: How many are stored, and why not all.
            ids: As the attribute.
            doubts: Positions that travelled together and were not answered, each with its error.
        """
        super().__init__(text)
        self.ids: list[str | None] = list(ids)
        self.uncertain: list[int] = [at for positions in doubts for at in positions]
        self._doubts = dict(doubts)

    async def retry(self) -> list[str | None]:
        """Send what is in doubt under its first identity again, one batch after the other.

        Returns:
            `ids` as they are known now; None is what is not stored: it was not sent, or refused.

        Raises:
            PublishManyError: Some are in doubt still, for the reason in `__cause__`; this error's
                `retry()` is safe again, unless that says that it is too late.

        Cancellation: what was sent may be stored, once; `retry()` is safe again.
        """
        ids, doubts = self.ids.copy(), self._doubts.copy()
        cause: MessageQueueError | None = None
        for positions, doubt in self._doubts.items():
            try:
                ids[positions.start : positions.stop] = await doubt.retry_batch()
            except ServerError:
                pass  # refused, which is an answer: it is not stored
            except PublishUncertainError as error:
                doubts[positions] = cause = error
                break  # each of the others would take as long
            except MessageQueueError as error:
                cause = error  # of the others more may be known
                continue
            del doubts[positions]
        if cause is not None:
            text = f"{sum(map(len, doubts))} messages are in doubt still: {cause}"
            raise PublishManyError(text, ids, doubts) from cause
        return ids

    @property
    def stored(self) -> list[str]:
        """The ids that are stored for certain, in order."""
        return [message_id for message_id in self.ids if message_id is not None]


class QueueDeletedError(MessageQueueError):
    """The queue, or the consumer's group, was deleted on purpose while it was in use."""


class ServerError(MessageQueueError):
    """Redis, or the line to it, answered with an error.

    Attributes:
        code: First word of the reply (`OOM`, `NOGROUP`, …); empty when there was no reply.
    """

    code: str = ""

    def again(self) -> Self:
        """Make a copy for another caller.

        One instance raised in many tasks would gather the tracebacks of them all.
        """
        copy = type(self)(*self.args)
        copy.code = self.code
        return copy


class ConnectionLostError(ServerError):
    """There is no connection, or it broke before the answer came. Trying again may work."""


class ServerNotReadyError(ServerError):
    """Redis is loading, failing over or moving the key. Passes by itself; nothing was done."""


class ServerFullError(ServerError):
    """Redis refuses writes (memory, disk, too few replicas). Nothing was stored."""


class AuthenticationError(ServerError):
    """User or password is wrong or missing. Trying again does not help."""


class PermissionDeniedError(ServerError):
    """The Redis user may not run a command this package needs. Nothing was done."""


class WrongKeyTypeError(ServerError):
    """A key of the queue holds something else. Nothing was changed."""


class UnsupportedServerError(ServerError):
    """The server lacks what every promise rests on (Redis 6.2 or later, any Valkey)."""


class CommandRefusedError(ServerError):
    """Redis answered with an error that has no class of its own; see `code`."""


FATAL = (
    AuthenticationError,
    PermissionDeniedError,
    WrongKeyTypeError,
    UnsupportedServerError,
)
"""What does not pass by itself."""


class RetryMessage(Exception):  # noqa: N818 -- a signal, not a failure of this package
    """Raised by a handler: try this message again, without holding a slot meanwhile.

    Args:
        detail: Why, in words; kept with the message.
        delay: Seconds until the next attempt, a century at most; None leaves it to the retry
            policy.
    """

    # Those of a subclass that does not call this `__init__`, as exceptions need not.
    detail: str = ""
    delay: float | None = None

    def __init__(self, detail: str = "", *, delay: float | None = None) -> None:
        """Refuse a delay that cannot be waited."""
        if delay is not None and not is_finite(delay, least=0):
            msg = f"delay must be 0 seconds or more, and finite, got {delay!r}"
            raise ConfigurationError(msg)
        super().__init__(detail)
        self.detail = str(detail)  # an error is often passed as the words
        self.delay = delay


class RejectMessage(Exception):  # noqa: N818 -- a signal, not a failure of this package
    """Raised by a handler: never try this message again; it becomes a dead letter.

    Args:
        detail: Why, in words; kept with the dead letter.
    """

    detail: str = ""

    def __init__(self, detail: str = "") -> None:
        """Keep the words."""
        super().__init__(detail)
        self.detail = str(detail)  # an error is often passed as the words


def is_finite(value: object, *, least: float) -> bool:
    """Say whether this is a number that can be reckoned with, and not below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return least <= value < math.inf


_BY_CODE: dict[str, type[ServerError]] = {
    "LOADING": ServerNotReadyError,
    "BUSY": ServerNotReadyError,
    "MASTERDOWN": ServerNotReadyError,
    "READONLY": ServerNotReadyError,
    "MOVED": ServerNotReadyError,
    "ASK": ServerNotReadyError,
    "TRYAGAIN": ServerNotReadyError,
    "CLUSTERDOWN": ServerNotReadyError,
    "UNBLOCKED": ServerNotReadyError,
    "OOM": ServerFullError,
    "MISCONF": ServerFullError,
    "NOREPLICAS": ServerFullError,
    "NOAUTH": AuthenticationError,
    "WRONGPASS": AuthenticationError,
    "NOPERM": PermissionDeniedError,
    "WRONGTYPE": WrongKeyTypeError,
}


# 6.2: "ERR Error running script (call to f_…): @user_script:12: @user_script: 12: -OOM command …"
# 7.0: "ERR user_script:3: WRONGTYPE Operation … script: …, on @user_script:3."
_PLACE = re.compile(
    r"^(?:ERR )?(?:Error running script \(call to \w+\): )?(?:@?user_script: ?\d+: )+"
)
_PLACE_BEHIND = re.compile(r" script: (?:\w+, )?on @?user_script:\d+\.?$")
_DENIED = re.compile(
    r"^(?:ERR )?(?:ACL failure in script: |(?=The user executing the script can't ))"
)


def server_error(text: str) -> ServerError:
    """Make the error for an error reply of Redis, by its first word.

    An error inside a script is reported by 6.2 with `ERR Error running script …` and the place in
    front of its words, by 7.0+ with the script's name behind them, and one that a script raises
    again has the place in front once more; all are looked through.
    """
    text = _PLACE.sub("", text, count=1)
    text = _PLACE_BEHIND.sub("", text)
    text = _DENIED.sub("NOPERM ", text)  # which has other words inside a script
    code = text.split(" ", 1)[0]
    if code.startswith("-"):  # 6.2 keeps the dash of a nested reply
        code = code[1:]
        text = text[1:]
    if code == "ERR" and "invalid password" in text:
        code = "WRONGPASS"
    error = _BY_CODE.get(code, CommandRefusedError)(text)
    error.code = code
    return error
