"""Envelope ⇄ stream fields, and the body by annotation.

On the wire: `body` holds the payload, `content-type` is left out for JSON, fields beginning with
`mq-` are this package's, every other field is a header of the application. With
`wire="original"` an entry is as the JavaScript library "Redis Message Queue" writes it: the JSON
text is the *name* of its first field, a random number the value.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, Union

from ._errors import DecodeError, EncodeError
from ._hints import bare, describe, members
from ._json import MismatchError, dump, load
from ._models import make_parse
from ._shape import make_shape

BODY: Final = b"body"
CONTENT_TYPE: Final = b"content-type"
RESERVED: Final = b"mq-"
_TAKEN = {BODY.decode(), CONTENT_TYPE.decode()}
_NAMES_LIMIT = 200

# A script can pass on some 8000 words at once: a message of more would break in the middle of it.
MOST_HEADERS = 1000

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
TEXT: Final = "text/plain"

_BUFFERS = (bytes, bytearray, memoryview)
_BYTES_FIELDS = (CONTENT_TYPE, BYTES.encode())
_TEXT_FIELDS = (CONTENT_TYPE, TEXT.encode())

Dumps: TypeAlias = Callable[[Any], bytes | str]
Loads: TypeAlias = Callable[[bytes], Any]


@dataclass(slots=True)
class Envelope:
    """An entry, taken apart. Not frozen: one is made per message, and frozen costs three times.

    Attributes:
        raw: The body's bytes; None when the entry has no body.
        content_type: `application/json` when the entry names none.
        headers: The application's headers.
        meta: The reserved fields, `mq-…`, as they are.
    """

    raw: bytes | None
    content_type: str
    headers: dict[str, str]
    meta: dict[str, bytes]


def encode(
    body: object, headers: Mapping[str, str] | None = None, dumps: Dumps | None = None
) -> tuple[bytes, ...]:
    """Write a body and its headers as the flat fields of an entry, `body` first.

    Args:
        body: `bytes` (any buffer) and `str` go as they are; everything else as JSON.
        headers: By name. A name is not empty, not `body` or `content-type`, and does not begin
            with `mq-`.
        dumps: JSON encoder to use instead of the standard library's.

    Raises:
        EncodeError: The body has no JSON form, or a header breaks a rule.
    """
    fields: tuple[bytes, ...]
    if isinstance(body, str):
        try:
            fields = (BODY, body.encode(), *_TEXT_FIELDS)
        except UnicodeEncodeError as error:
            raise _lone_surrogate("body", error) from error
    elif isinstance(body, _BUFFERS):
        fields = (BODY, bytes(body), *_BYTES_FIELDS)
    else:
        fields = (BODY, dump(body, dumps))
    return fields + _header_fields(headers) if headers else fields


def encode_original(
    body: object, headers: Mapping[str, str] | None = None, dumps: Dumps | None = None
) -> tuple[bytes, ...]:
    """Write a body as the JavaScript library does: the JSON text is the field's name.

    Raises:
        EncodeError: The body has no JSON form, or there are headers, which have no place there.
    """
    if headers:
        msg = 'wire="original" has no place for headers: send them inside the body'
        raise EncodeError(msg)
    return dump(body, dumps), repr(random.random()).encode()


def open_envelope(fields: list[bytes]) -> Envelope:
    r"""Take apart the flat fields of an entry, whoever wrote it. Raises nothing.

    What is not UTF-8 is shown with backslashes (`\xff`); of fields with the same name the first
    counts; a name without a value is left out.
    """
    if len(fields) == 2 and fields[0] == BODY:
        return Envelope(fields[1], JSON, {}, {})
    raw = content_type = None
    headers: dict[str, str] = {}
    meta: dict[str, bytes] = {}
    names = iter(fields)
    for name, value in zip(names, names, strict=False):
        if name == BODY:
            raw = value if raw is None else raw
        elif name == CONTENT_TYPE:
            content_type = _text(value) if content_type is None else content_type
        elif name.startswith(RESERVED):
            meta.setdefault(_text(name), value)
        else:
            headers.setdefault(_text(name), _text(value))
    return Envelope(raw, content_type or JSON, headers, meta)


def open_original(fields: list[bytes]) -> Envelope:
    """Take apart an entry of the JavaScript library's. Raises nothing.

    An entry with a field `body`, which is no JSON text, is one of ours and opened as such: what
    was sent before or after a queue was taken over is read all the same.
    """
    if BODY in fields[::2]:
        return open_envelope(fields)
    raw: bytes | None = None
    meta: dict[str, bytes] = {}
    names = iter(fields)
    for name, value in zip(names, names, strict=False):
        if name.startswith(RESERVED):
            meta.setdefault(_text(name), value)
        elif raw is None:
            raw = name
    return Envelope(raw, JSON, {}, meta)


def is_original_marker(fields: list[bytes]) -> bool:
    """Tell the entry with which the JavaScript library makes a stream from a message."""
    if (
        not fields
        or not fields[0].startswith(b"{")
        or b"queueInitialized" not in fields[0]
    ):
        return False
    try:
        value = load(fields[0])
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(value, dict)
        and value.keys() == {"queueInitialized", "queueName"}
        and value["queueInitialized"] is True
    )


def decoder(
    annotation: object, loads: Loads | None = None
) -> Callable[[Envelope], object]:
    """Make what reads bodies into what an annotation asks for.

    Without annotation (None, `Any`, `object`) the content type decides: JSON value, `str` for
    `text/…`, `bytes` for anything else. `bytes` is the body as stored and `str` its text, whatever
    the content type. Every other annotation reads the body as JSON, whatever the content type, and
    wants a shape (the table in `_shape.py`). A union with `bytes` or `str` in it (`str | None`)
    takes those by content type first.

    Args:
        annotation: Resolved: no string, and none inside.
        loads: JSON decoder to use instead of the standard library's. pydantic models and msgspec
            Structs are read by their own.

    Returns:
        From an envelope to the body; raises `DecodeError`.

    Raises:
        HandlerSignatureError: Bodies cannot be read into that.
    """
    wanted = bare(annotation)
    loads = load if loads is None else loads
    if wanted is None or wanted is Any or wanted is object:
        return _by_content(loads)
    if wanted is bytes:
        return _raw
    if wanted is str:
        return _body_text
    union = members(wanted)
    if bytes in union or str in union:
        return _by_content_first(wanted, union, loads)
    parse = make_parse(wanted)
    if parse is not None:
        return _parsed(parse)
    return _shaped(make_shape(wanted), loads)


def _raw(envelope: Envelope) -> bytes:
    if envelope.raw is None:
        raise _bodiless(envelope)
    return envelope.raw


def _body_text(envelope: Envelope) -> str:
    try:
        return _raw(envelope).decode()
    except UnicodeDecodeError as error:
        msg = f"body is not UTF-8 text: {error}"
        raise DecodeError(msg) from error


def _by_content(loads: Loads) -> Callable[[Envelope], object]:
    def decode(envelope: Envelope) -> object:
        raw = envelope.raw
        if raw is None:
            raise _bodiless(envelope)
        content_type = envelope.content_type
        if content_type != JSON:
            media = content_type.partition(";")[0].strip().lower()
            if media.startswith("text/"):
                return _body_text(envelope)
            if media != JSON and not media.endswith("+json"):
                return raw
        try:
            return loads(raw)
        except Exception as error:
            raise _not_json(error) from error

    return decode


def _by_content_first(
    wanted: object, union: tuple[object, ...], loads: Loads
) -> Callable[[Envelope], object]:
    natural = _by_content(loads)
    as_is = tuple(kind for kind in (bytes, str) if kind in union)
    rest = tuple(member for member in union if member not in as_is)
    other = decoder(Union[rest], loads) if rest else None  # noqa: UP007 -- of a tuple

    def decode(envelope: Envelope) -> object:
        body = natural(envelope)
        if isinstance(body, as_is):
            return body
        if other is None:
            msg = f"body: expected {describe(wanted)}, got {type(body).__qualname__}"
            raise DecodeError(msg)
        return other(envelope)

    return decode


def _parsed(parse: Callable[[bytes], object]) -> Callable[[Envelope], object]:
    def decode(envelope: Envelope) -> object:
        if envelope.raw is None:
            raise _bodiless(envelope)
        try:
            return parse(envelope.raw)
        except MismatchError as error:
            raise _mismatch(error) from error.__cause__

    return decode


def _shaped(shape: Callable[[Any], Any], loads: Loads) -> Callable[[Envelope], object]:
    def decode(envelope: Envelope) -> object:
        if envelope.raw is None:
            raise _bodiless(envelope)
        try:
            value = loads(envelope.raw)
        except Exception as error:
            raise _not_json(error) from error
        try:
            return shape(value)
        except MismatchError as error:
            raise _mismatch(error) from error.__cause__
        except RecursionError as error:  # a recursive type
            msg = "body is nested too deeply"
            raise DecodeError(msg) from error

    return decode


def _bodiless(envelope: Envelope) -> DecodeError:
    names = ", ".join(map(repr, [*envelope.headers, *envelope.meta])) or "nothing"
    return DecodeError(f"the entry has no field 'body', only {names[:_NAMES_LIMIT]}")


def _not_json(error: Exception) -> DecodeError:
    return DecodeError(f"body is not JSON: {str(error) or type(error).__qualname__}")


def _mismatch(error: MismatchError) -> DecodeError:
    return DecodeError(f"body{error.at}: {error.what}")


def _header_fields(headers: Mapping[Any, Any]) -> tuple[bytes, ...]:
    """Write headers as fields; refuse what would not come back as it was."""
    if not isinstance(headers, Mapping):
        msg = (
            f"headers must be a mapping of str to str, got {type(headers).__qualname__}"
        )
        raise EncodeError(msg)
    if len(headers) > MOST_HEADERS:
        msg = f"a message can have {MOST_HEADERS} headers at most, got {len(headers)}"
        raise EncodeError(msg)
    fields: list[bytes] = []
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            msg = (
                f"headers must be str to str, got {name!r}: {type(value).__qualname__}"
            )
            raise EncodeError(msg)
        if not name or name in _TAKEN or name.startswith("mq-"):
            msg = (
                "a header's name must not be empty, 'body' or 'content-type', nor begin with "
                f"'mq-', got {name!r}"
            )
            raise EncodeError(msg)
        try:
            fields += (name.encode(), value.encode())
        except UnicodeEncodeError as error:
            raise _lone_surrogate(f"header {name!r}", error) from error
    return tuple(fields)


def _lone_surrogate(where: str, error: UnicodeEncodeError) -> EncodeError:
    lone = error.object[error.start]
    return EncodeError(f"{where}: lone surrogate {lone!r} cannot be sent as UTF-8")


def _text(raw: bytes) -> str:
    r"""Show what is not UTF-8 with backslashes, as `errors="backslashreplace"` does.

    That one is called for each byte: megabytes of another encoding would hold up the event loop
    for a second. Lone surrogates are written with backslashes in one go.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        if b"\\udc" in raw:  # what this would take for a surrogate of its own
            return raw.decode(errors="backslashreplace")
    escaped = raw.decode(errors="surrogateescape").encode(errors="backslashreplace")
    return escaped.replace(b"\\udc", b"\\x").decode()
