"""JSON, strict and compact: a Python value to bytes, and back.

Strict: what JSON cannot say is refused with its place, never turned into something else.
"""

from __future__ import annotations

import dataclasses
import json
import json.encoder
import math
from collections.abc import Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from enum import Enum
from functools import singledispatch
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from ._errors import EncodeError

if TYPE_CHECKING:
    from collections.abc import Callable

_SCALARS = frozenset({str, int, float, bool, type(None)})
_ARRAYS = (list, tuple)

# What models carry. Asking for their classes would mean importing both libraries.
_PYDANTIC = "__pydantic_serializer__"
_MSGSPEC = "__struct_fields__"


class MismatchError(Exception):
    """A value is not what was asked for. Never leaves: the codec makes a `DecodeError` of it.

    Attributes:
        what: What is wrong.
        at: Path to the value, as in `.items[2].price`; empty for the whole.
    """

    def __init__(self, what: str, at: str = "") -> None:
        """Say what is wrong; the path grows on the way up."""
        super().__init__(what, at)
        self.what = what
        self.at = at

    @classmethod
    def of(cls, wanted: str, value: object) -> MismatchError:
        """Say what was wanted, and the type of what is there."""
        return cls(f"expected {wanted}, got {type(value).__qualname__}")

    @classmethod
    def missing(cls, owner: str) -> MismatchError:
        """Say that a part is not there."""
        return cls(f"is missing, {owner} needs it")

    @classmethod
    def refused(cls, who: str, error: Exception) -> MismatchError:
        """Pass on the words of what was to take the value."""
        return cls(f"{who} refused it: {str(error) or type(error).__qualname__}")

    def under(self, key: object) -> MismatchError:
        """Add the step that leads to this value, when it is found to be inside another."""
        self.at = step(key) + self.at
        return self


def dump(value: object, dumps: Callable[[Any], bytes | str] | None = None) -> bytes:
    """Write `value` as JSON in UTF-8, without blanks.

    Beyond what `json` knows: dataclasses, pydantic models and msgspec Structs (as themselves and
    anywhere inside), mappings; as strings `datetime`, `date`, `time`, `UUID` and `Decimal`; enum
    members as their values.

    Args:
        value: What to write.
        dumps: Encoder to use instead. It alone decides what it takes; only a model or Struct
            that is the whole value is made plain for it.

    Raises:
        EncodeError: It cannot be said in JSON (NaN, a set, a key that is not a string, a lone
            surrogate, a circle, …); the text has the place and the offender.
    """
    try:
        if dumps is not None:
            return _as_bytes(dumps(_plain(value) if _is_model(type(value)) else value))
        raw = "".join(_encode(value, 0)).encode()
        _check_keys(value)
    except Exception as error:
        msg = _explain(value, error, theirs=dumps is not None)
        raise EncodeError(msg) from error
    return raw


def load(raw: bytes) -> object:
    """Read JSON in UTF-8; blanks around it and a byte order mark are allowed.

    Raises:
        ValueError: It is not JSON (NaN and Infinity are not), or not UTF-8.
        RecursionError: It is nested too deeply.
    """
    text = raw.decode()
    try:
        value, end = _raw_decode(text)
    except json.JSONDecodeError:
        end = -1
    if end == len(text):
        return value
    return _DECODER.decode(text.removeprefix("\ufeff"))


def step(key: object) -> str:
    """Write one step of a path, as in `items[2].price`, with what leads up to it."""
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    return f"[{key!r}]"


def _is_model(kind: type) -> bool:
    return hasattr(kind, _PYDANTIC) or hasattr(kind, _MSGSPEC)


@singledispatch
def _plain(value: object) -> object:
    """Make an object one step plainer, for `json` to go on with."""
    kind: Any = type(value)
    if hasattr(kind, _PYDANTIC):
        return kind.__pydantic_serializer__.to_python(value, mode="json", by_alias=True)
    if hasattr(kind, _MSGSPEC):
        import msgspec  # has been imported already: the value is one of its objects

        return msgspec.to_builtins(value, str_keys=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    msg = f"{kind.__qualname__} has no JSON form"
    raise TypeError(msg)


@_plain.register
def _(value: date) -> str:  # `datetime` is one
    return value.isoformat()


@_plain.register
def _(value: time) -> str:
    return value.isoformat()


@_plain.register
def _(value: UUID) -> str:
    return str(value)


@_plain.register
def _(value: Decimal) -> str:
    if not value.is_finite():
        msg = f"Decimal {value} has no JSON form"
        raise ValueError(msg)
    return str(value)


@_plain.register
def _(value: Enum) -> object:
    return value.value


@_plain.register
def _(value: Mapping) -> object:  # type: ignore[type-arg]  # -- it dispatches on it
    return dict(value)


def _default(value: object) -> object:
    """Help `json` with an object, and look at the keys it brings."""
    plain = _plain(value)
    _check_keys(plain)
    return plain


def _check_keys(value: object) -> None:
    """Refuse keys that are not strings: `json` would make strings of numbers and None."""
    if isinstance(value, dict):
        "".join(value)  # in C; raises TypeError for any other key
        value = value.values()
    elif not isinstance(value, _ARRAYS):
        return
    if _SCALARS.issuperset(map(type, value)):
        return
    for item in value:
        if type(item) not in _SCALARS:
            _check_keys(item)


def _refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and the infinities, which `json` would read."""
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _make_encode() -> Callable[[object, int], Iterator[str] | tuple[str, ...]]:
    """Build the encoder once.

    `JSONEncoder.encode` builds the same C object for every value, which costs as much as
    encoding 100 bytes. Without markers (first argument) a circle ends in a RecursionError.
    """
    slow = json.JSONEncoder(
        separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_default
    )
    try:
        fast = json.encoder.c_make_encoder(  # type: ignore[attr-defined]  # -- no stub has it
            None,
            _default,
            json.encoder.encode_basestring,
            None,
            ":",
            ",",
            False,
            False,
            False,
        )
        if "".join(fast({"a": [1, "é"]}, 0)) == '{"a":[1,"é"]}':
            return fast  # type: ignore[no-any-return]  # -- as above
    except (AttributeError, TypeError):
        pass  # another Python's `json`
    return lambda value, _: slow.iterencode(value)


_encode = _make_encode()
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_raw_decode = _DECODER.raw_decode


def _as_bytes(written: object) -> bytes:
    """Take what a caller's encoder returned."""
    if isinstance(written, str):
        return written.encode()
    if isinstance(written, bytes | bytearray | memoryview):
        return bytes(written)
    msg = f"dumps must return bytes or str, got {type(written).__qualname__}"
    raise TypeError(msg)


def _explain(value: object, error: Exception, *, theirs: bool) -> str:
    """Find out what in `value` made the encoder fail. Slow, and only after a failure."""
    words = str(error) or type(error).__qualname__
    if theirs:
        return f"body: {words}"
    try:
        return _fault(value, "body", frozenset()) or f"body: {words}"
    except RecursionError:
        return "body: nested too deeply"


def _fault(value: object, at: str, above: frozenset[int]) -> str:
    """Say where and why `value` cannot be JSON; empty when it can."""
    if isinstance(value, str):
        return _fault_of_text(value, at)
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{at}: {value} is not JSON"
    if value is None or isinstance(value, int):
        return ""
    if id(value) in above:
        return f"{at}: {type(value).__qualname__} contains itself"
    try:
        faults = (
            fault if isinstance(fault, str) else _fault(*fault, above | {id(value)})
            for fault in _parts(value, at)
        )
        return next(filter(None, faults), "")
    except RecursionError:
        raise
    except Exception as error:  # noqa: BLE001 -- a property or serializer of the body's own
        return f"{at}: {str(error) or type(error).__qualname__}"


def _fault_of_text(text: str, at: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{at}: lone surrogate {text[error.start]!r} cannot be sent as UTF-8"
    return ""


def _parts(value: object, at: str) -> Iterator[str | tuple[object, str]]:
    """Yield what is inside, each with its path, or a fault."""
    match value:
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    yield f"{at}: key {key!r} is {type(key).__qualname__}, must be str"
                else:
                    yield _fault_of_text(key, f"{at}: key {key!r}")
                yield item, at + step(key)
        case list() | tuple():
            for index, item in enumerate(value):
                yield item, f"{at}[{index}]"
        case _:
            yield _plain(value), at
