"""What travels with a message that failed: its id, its attempts, and in the end why it died."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._message import Entry
    from ._outcome import Failure

# Reserved headers, as field names on the wire. All begin with `mq-`.
_ID = b"mq-id"
_ATTEMPT = b"mq-attempt"
_CRASHES = b"mq-crashes"
_DETAIL = b"mq-detail"
EXPIRES = b"mq-expires"
_GROUP = b"mq-group"
_REASON = b"mq-reason"
_ERROR_TYPE = b"mq-error-type"
_TRACEBACK = b"mq-traceback"
_DIED = b"mq-died"
_PRODUCED = b"mq-produced"

# A script can pass on some 8000 words at once, and would break after it has acknowledged. Only
# entries that others have written are wider (ours have 1000 headers at most): the rest is left out.
_MOST_WORDS = 4000
# What a dead letter has at most: those, its body, and the fields of ours.
_MOST_WORDS_DEAD = _MOST_WORDS + 40


def message_id(entry: Entry) -> str:
    """The id `produce` returned: the one an entry carries, if it has moved since."""
    if not entry.in_lane and len(entry.fields) == 2:
        return entry.id.decode()
    return (_carried(entry, _ID) or entry.id).decode("utf-8", "backslashreplace")


def attempts_made(entry: Entry) -> int:
    """How often a handler has tried this message before.

    The stream's own entries were never tried: a header of ours in one is somebody else's words.
    """
    if not entry.in_lane:
        return 0
    return _number(entry, _ATTEMPT)


def expires_at(entry: Entry) -> float | None:
    """When it is not to be handled any more, in seconds since the epoch (server's clock)."""
    return _number(entry, EXPIRES) / 1000 or None


def handed_back(entry: Entry) -> list[bytes]:
    """Fields of a message that was not tried: attempts unchanged."""
    return _with(
        entry, attempts_made(entry), (_DETAIL, _carried(entry, _DETAIL) or b"")
    )


def tried_again(entry: Entry, attempt: int, detail: str) -> list[bytes]:
    """Fields of a message that failed and will be tried again."""
    return _with(entry, attempt, (_DETAIL, _text(detail)))


def put_aside(entry: Entry, attempt: int, group: str, failure: Failure) -> list[bytes]:
    """Fields of a dead letter."""
    return _with(
        entry,
        attempt,
        (_GROUP, _text(group)),
        (_REASON, failure.reason.encode()),
        (_DETAIL, _text(failure.detail)),
        (_ERROR_TYPE, _text(failure.error_type)),
        (_TRACEBACK, _text(failure.traceback)),
    )


def still_dead(entry: Entry) -> list[bytes]:
    """Fields of a dead letter that goes back to the others: as it was, and when it died."""
    fields: list[bytes] = []
    for at in range(0, min(len(entry.fields), _MOST_WORDS_DEAD) - 1, 2):
        if entry.fields[at] != _DIED:
            fields += entry.fields[at : at + 2]
    died = _number(entry, _DIED) or int(entry.id.partition(b"-")[0])
    return [*fields, _DIED, b"%d" % died]


def _with(entry: Entry, attempt: int, *more: tuple[bytes, bytes]) -> list[bytes]:
    fields: list[bytes] = []
    for at in range(0, len(entry.fields) - 1, 2):
        name = entry.fields[at]
        if not name.startswith(b"mq-") and (
            len(fields) < _MOST_WORDS or (name == b"body" and name not in fields[::2])
        ):
            fields += (name, entry.fields[at + 1])
    fields += (_ID, message_id(entry).encode("utf-8", "replace"))
    fields += (_ATTEMPT, b"%d" % attempt)
    crashes = max(entry.crashes, _number(entry, _CRASHES) if entry.in_lane else 0)
    if crashes:
        fields += (_CRASHES, b"%d" % crashes)
    for name in (EXPIRES, _PRODUCED):
        value = _carried(entry, name)
        if value is not None:
            fields += (name, value)
    for name, value in more:
        if value:
            fields += (name, value)
    return fields


def _carried(entry: Entry, name: bytes) -> bytes | None:
    for at in range(0, len(entry.fields) - 1, 2):
        if entry.fields[at] == name:
            return entry.fields[at + 1]
    return None


def _number(entry: Entry, name: bytes) -> int:
    text = _carried(entry, name) or b"0"
    return int(text) if text.isdigit() and len(text) < 16 else 0


def _text(words: str) -> bytes:
    return words.encode("utf-8", "backslashreplace")
