"""`DeadLetters`: what failed for good: look at it, bring it back, or let it go."""

from __future__ import annotations

import secrets
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _scripts as scripts
from ._config import ConsumerConfig, ConsumerOptions, consumer_config
from ._errors import ConfigurationError, ServerError
from ._times import moment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from typing_extensions import Unpack

    from ._message import Record
    from ._stream import Stream

# Letters in one call: with bodies of some KB a few hundred microseconds of the server's time.
_PAGE = 100

_OURS = ("mq-id", "mq-group", "mq-reason", "mq-detail", "mq-error-type", "mq-traceback")
_DIED = b"mq-died"
_PRODUCED = b"mq-produced"

# How long the server knows a request again: far longer than one is sent again.
_MEMORY_MS = 600_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that failed for good.

    Attributes:
        id: The letter's own id: what `get`, `redrive` and `discard` take.
        message_id: The id `produce` returned.
        reason: `rejected`, `attempts`, `crashed`, `decode` or `expired`.
        detail: The words.
        error_type: Name of the error's class; empty when nothing was raised.
        traceback: The end of its traceback.
        group: The group it died in.
        attempts: How often a handler was tried.
        crashes: Processes that ended while it was their marked suspect.
        produced_at: When it was produced, by the server's clock, also when it was to be handled
            later; None for one that somebody else has written.
        died_at: When it was put aside, by the server's clock.
        body: Decoded by content type; the raw bytes when it cannot be decoded.
        headers: The application's headers.
        fields: Everything stored, as it is.
    """

    id: str
    message_id: str
    reason: str
    detail: str
    error_type: str
    traceback: str = field(repr=False)
    group: str
    attempts: int
    crashes: int
    produced_at: datetime | None
    died_at: datetime
    body: object
    headers: Mapping[str, str]
    fields: Mapping[bytes, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Redriven:
    """What a `redrive` has done.

    Attributes:
        count: Letters brought back.
        missing: Ids that are not there (any more).
        without_group: Ids whose group is gone: they stay dead letters.
    """

    count: int
    missing: tuple[str, ...]
    without_group: tuple[str, ...]


# Aliases, as inside the class `list` is its method.
_Page: TypeAlias = list[tuple[str, DeadLetter | None]]
_Ids: TypeAlias = list[str]
_Answers: TypeAlias = list[int]
_Letters: TypeAlias = list[DeadLetter]


class DeadLetters:
    """The dead letters of one queue. Made by `RedisMessageQueue.dead_letters`."""

    def __init__(
        self,
        stream: Callable[[], Stream],
        read: Callable[[Any], Record],
        consume: Callable[[Callable[..., Any], ConsumerConfig], Awaitable[None]],
    ) -> None:
        """Nothing is asked yet.

        Args:
            stream: Gives the open queue; raises when it is not.
            read: Takes an entry apart.
            consume: Runs a handler on dead letters until cancelled.
        """
        self._stream = stream
        self._read = read
        self._consume = consume

    async def count(self) -> int:
        """Count them.

        Raises:
            ServerError: Redis was away, or refuses.
        """
        stream = self._stream()
        return int(await stream.link.call("XLEN", stream.keys.dead))

    async def list(
        self,
        *,
        reason: str | None = None,
        since: datetime | float | None = None,
        limit: int | None = 100,
    ) -> list[DeadLetter]:
        """List them, oldest first; one that a consumer of letters has handed back comes later.

        Args:
            reason: Only those with this reason.
            since: Only those that died since: seconds since the epoch, or a `datetime` with a
                time zone.
            limit: At most so many; None for all.

        Raises:
            ConfigurationError: `since` is no such moment.
            ServerError: Redis was away, or refuses.
        """
        border = None
        if since is not None:
            border = datetime.fromtimestamp(moment("since", since), UTC)
        found: _Letters = []
        async for letter in self._each(reason, border):
            if limit is not None and len(found) >= limit:
                break
            found.append(letter)
        return found

    async def get(self, letter_id: str) -> DeadLetter | None:
        """Give one by its id; None when it is not there.

        Raises:
            ServerError: Redis was away, or refuses (an id that is none, for one).
        """
        stream = self._stream()
        rows = await stream.link.call("XRANGE", stream.keys.dead, letter_id, letter_id)
        # Half an id, without its sequence, would find whatever died in that millisecond.
        is_there = bool(rows) and rows[0][0] == letter_id.encode()
        return self._letter(rows[0]) if is_there else None

    async def redrive(
        self,
        *ids: str,
        reason: str | None = None,
        all: bool = False,  # noqa: A002 -- the word users know
        reset_attempts: bool = True,
    ) -> Redriven:
        """Bring letters back to the group each died in: not to every group.

        Killed at any point, a letter is in exactly one place.

        Args:
            ids: These letters.
            reason: Or all with this reason.
            all: Or all: those that are there when it begins, not what dies again meanwhile.
            reset_attempts: Whether attempts and crashes are counted anew.

        Raises:
            ConfigurationError: Not exactly one of ids, reason and all was given.
            ServerError: Redis was away, or refuses; what was brought back before stays so.
        """
        count, missing, without_group = 0, [], []
        memory, number = self._stream().keys.sent(secrets.token_hex(8)), 0
        async for page in self._chosen(ids, reason, everything=all):
            by_group: dict[str, _Ids] = defaultdict(list)
            for letter_id, letter in page:
                if letter is None:
                    missing.append(letter_id)
                else:
                    by_group[letter.group].append(letter_id)
            for group, members in by_group.items():
                number += 1
                answers = await self._redrive(
                    group, members, (memory, number), reset=reset_attempts
                )
                for letter_id, answer in zip(members, answers, strict=True):
                    count += answer == 1
                    if answer == 0:
                        missing.append(letter_id)
                    elif answer < 0:
                        without_group.append(letter_id)
        return Redriven(count, tuple(missing), tuple(without_group))

    async def discard(
        self,
        *ids: str,
        reason: str | None = None,
        all: bool = False,  # noqa: A002 -- the word users know
    ) -> int:
        """Remove letters for good; returns how many, without those of a call whose answer was lost.

        Args:
            ids: These letters.
            reason: Or all with this reason.
            all: Or all: those that are there when it begins.

        Raises:
            ConfigurationError: Not exactly one of ids, reason and all was given.
            ServerError: Redis was away, or refuses; what was removed before stays so.
        """
        stream = self._stream()
        count = 0
        async for page in self._chosen(ids, reason, everything=all):
            chosen = [letter_id for letter_id, _ in page]
            count += int(await stream.link.call("XDEL", stream.keys.dead, *chosen))
        return count

    async def consume(
        self, callback: Callable[..., Any], /, **options: Unpack[ConsumerOptions]
    ) -> None:
        """Call `callback` with each dead letter, until cancelled; success removes the letter.

        One that fails stays a dead letter and is not tried again by this group: `RetryMessage`
        is a failure like any other here, and its delay is not waited for. One that is handed back,
        not started or cut off when this ends, is a dead letter like the others: under another id,
        with its time of death, and to be consumed again. The message's `reserved` says why it died.

        Args:
            callback: The handler. Its parameters decide what it gets, as with a queue's.
            options: The fields of `ConsumerConfig`; `max_attempts` is 1.

        Raises:
            MessageQueueError: As `RedisMessageQueue.consume`.

        Cancellation: as `RedisMessageQueue.consume`.
        """
        self._stream()
        await self._consume(callback, consumer_config({**options, "max_attempts": 1}))

    # ------------------------------------------------------------------------------------------

    async def _redrive(
        self, group: str, ids: _Ids, request: tuple[str, int], *, reset: bool
    ) -> _Answers:
        """Bring back the letters of one group; sent again over a lost line, it is done once."""
        stream = self._stream()
        memory, number = request
        keys = stream.keys
        answers: _Answers = await stream.link.run(
            scripts.REDRIVE,
            [keys.dead, keys.stream, keys.lane(group), memory],
            [group, keys.bell, int(reset), number, _MEMORY_MS, *ids],
        )
        return answers

    async def _chosen(
        self, ids: tuple[str, ...], reason: str | None, *, everything: bool
    ) -> AsyncIterator[_Page]:
        """Give the chosen letters page by page: each id, and the letter unless it is gone."""
        if (bool(ids), reason is not None, everything).count(True) != 1:
            msg = "say which dead letters: ids, reason=, or all=True"
            raise ConfigurationError(msg)
        page: _Page = []
        for letter_id in dict.fromkeys(ids):
            page.append((letter_id, await self._get_or_none(letter_id)))
            if len(page) == _PAGE:
                yield page
                page = []
        if not ids:
            async for letter in self._each(reason, None):
                page.append((letter.id, letter))
                if len(page) == _PAGE:
                    yield page
                    page = []
        if page:
            yield page

    async def _get_or_none(self, letter_id: str) -> DeadLetter | None:
        try:
            return await self.get(letter_id)
        except ServerError as error:
            if "Invalid stream ID" not in str(error):
                raise
            msg = f"{letter_id!r} is not the id of a dead letter: see `list()`"
            raise ConfigurationError(msg) from None

    async def _each(
        self, reason: str | None, since: datetime | None
    ) -> AsyncIterator[DeadLetter]:
        stream = self._stream()
        key = stream.keys.dead
        # What dies meanwhile is not among them: else those that fail again had no end.
        last = await stream.last_dead()
        if last is None:
            return
        start = "-" if since is None else str(int(since.timestamp() * 1000))
        while True:
            rows = await stream.link.call("XRANGE", key, start, last, "COUNT", _PAGE)
            for row in rows:
                letter = self._letter(row)
                # One that was handed back stands behind those that died after it.
                old = since is not None and letter.died_at < since
                if not old and reason in {None, letter.reason}:
                    yield letter
            if len(rows) < _PAGE:
                return
            start = f"({rows[-1][0].decode()}"

    def _letter(self, row: Any) -> DeadLetter:
        record = self._read(row)
        said = {
            name: record.fields.get(name.encode(), b"").decode(
                "utf-8", "backslashreplace"
            )
            for name in _OURS
        }
        return DeadLetter(
            id=record.id,
            message_id=said["mq-id"],
            reason=said["mq-reason"],
            detail=said["mq-detail"],
            error_type=said["mq-error-type"],
            traceback=said["mq-traceback"],
            group=said["mq-group"],
            attempts=_number(record.fields.get(b"mq-attempt")),
            crashes=_number(record.fields.get(b"mq-crashes")),
            produced_at=_at(_number(record.fields.get(_PRODUCED)))
            or _moment(said["mq-id"]),
            died_at=_at(_number(record.fields.get(_DIED)))
            or _moment(record.id)
            or datetime.fromtimestamp(0, UTC),
            body=record.body,
            headers=record.headers,
            fields=record.fields,
        )


def _moment(entry_id: str) -> datetime | None:
    milliseconds, _, sequence = entry_id.partition("-")
    # Python takes other digits than ASCII's for digits, and refuses to read thousands of them.
    if not sequence.isascii() or not sequence.isdigit():
        return None
    return _at(_number(milliseconds.encode("utf-8", "replace")))


def _at(milliseconds: int) -> datetime | None:
    if not milliseconds:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None  # a time somebody made up


def _number(text: bytes | None) -> int:
    return int(text) if text is not None and text.isdigit() and len(text) < 16 else 0
