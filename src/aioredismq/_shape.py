"""The shape an annotation asks for: a JSON value, checked and converted.

| annotation | takes, in JSON |
| --- | --- |
| `Any`, `object`, a type variable without bound | anything, and leaves it as it is |
| `None`, `bool`, `int`, `str` | exactly that: true and 1.0 are no `int`, 1 is no `str` |
| `float` | a number |
| `list`, `Sequence`, `Iterable`, `Collection`, `set`, `frozenset`, `tuple` | an array |
| `dict`, `Mapping` | an object; the type of its keys is one that is written as a string |
| dataclass, `TypedDict` | an object; unknown keys are left out, so that producers may add some |
| `datetime`, `date`, `time`, `UUID` | a string: ISO 8601; as usual |
| `Decimal` | a string or a number |
| `Enum`, `Literal` | one of the values |
| a union | what the first fitting member takes, in the order written, `float` last |
| pydantic model, msgspec Struct | what they make of it, by their own rules |

`Annotated` (its constraints are not checked), `NewType`, `Final` and type aliases are looked
through; generic and recursive dataclasses, and any nesting of these, work. The rest is refused
when the shape is made.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, EnumType
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import typing_extensions as typing_x

from ._errors import HandlerSignatureError
from ._hints import bare, describe, fields_of, is_optional_key, members
from ._json import MismatchError, dump
from ._models import make_parse

Shape: TypeAlias = Callable[[Any], Any]
"""From a JSON value to what the annotation asks for, or a `MismatchError`."""

_Memo: TypeAlias = dict[object, Shape]


def make_shape(annotation: object) -> Shape:
    """Compile an annotation, once; what comes back does no introspection.

    Raises:
        HandlerSignatureError: It is not in the table above, or a name in it is not known.
    """
    return _shape(annotation, {})


def _shape(annotation: object, memo: _Memo) -> Shape:
    annotation = bare(annotation)
    origin = typing_x.get_origin(annotation) or annotation
    if not isinstance(origin, collections.abc.Hashable):
        raise _unsupported(annotation)
    if leaf := _LEAVES.get(origin):
        return leaf
    if parse := make_parse(annotation):
        return lambda value: parse(dump(value))
    for matches, make in _MAKERS:
        if matches(origin):
            return make(annotation, memo)
    raise _unsupported(annotation)


def _unsupported(annotation: object) -> HandlerSignatureError:
    return HandlerSignatureError(
        f"cannot decode a body into {describe(annotation)}: supported are JSON's own types, "
        "collections of them, dataclasses, TypedDict, Enum, Literal, datetime, date, time, UUID, "
        "Decimal, pydantic models and msgspec Structs"
    )


def _anything(value: Any) -> Any:
    return value


def _exactly(kind: type) -> Shape:
    """Take values of this type only; `bool` is no `int`."""

    def convert(value: Any) -> Any:
        if type(value) is not kind:
            raise MismatchError.of(describe(kind), value)
        return value

    return convert


def _float(value: Any) -> float:
    if type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise MismatchError.refused("float", error) from error
    if type(value) is not float:
        raise MismatchError.of("float", value)
    return value


def _from_text(read: Callable[[str], Any], name: str) -> Shape:
    """Take strings that `read` takes."""

    def convert(value: Any) -> Any:
        if type(value) is not str:
            raise MismatchError.of(f"{name} as str", value)
        try:
            return read(value)
        except ValueError as error:
            raise MismatchError.refused(name, error) from error

    return convert


def _decimal(value: Any) -> Decimal:
    if type(value) not in {str, int, float}:
        raise MismatchError.of("Decimal as str or number", value)
    try:
        number = Decimal(str(value))  # of a float, the digits that were in the JSON
    except ArithmeticError:
        number = Decimal("NaN")
    if not number.is_finite():
        what = f"expected Decimal, got a {type(value).__qualname__} that is no finite number"
        raise MismatchError(what)
    return number


_LEAVES: dict[object, Shape] = {
    Any: _anything,
    object: _anything,
    inspect.Parameter.empty: _anything,
    None: _exactly(type(None)),
    type(None): _exactly(type(None)),
    bool: _exactly(bool),
    int: _exactly(int),
    str: _exactly(str),
    float: _float,
    datetime: _from_text(datetime.fromisoformat, "datetime"),
    date: _from_text(date.fromisoformat, "date"),
    time: _from_text(time.fromisoformat, "time"),
    UUID: _from_text(UUID, "UUID"),
    Decimal: _decimal,
}


def _bound(annotation: TypeVar, memo: _Memo) -> Shape:
    return _shape(annotation.__bound__ or Any, memo)


def _union(annotation: object, memo: _Memo) -> Shape:
    # `float` takes whole numbers too: behind the others, `float | int` leaves 1 what it is.
    union = sorted(members(annotation), key=lambda member: member is float)
    shapes = [_shape(member, memo) for member in union]
    wanted = describe(annotation)

    def convert(value: Any) -> Any:
        deepest = MismatchError.of(wanted, value)
        for shape in shapes:
            try:
                return shape(value)
            except MismatchError as error:
                if len(error.at) > len(deepest.at):
                    deepest = error
        raise deepest

    return convert


def _literal(annotation: object, _: _Memo) -> Shape:
    table = {}
    for value in typing_x.get_args(annotation):
        plain = value.value if isinstance(value, Enum) else value
        table[type(plain), plain] = value
    return _choice(table, " or ".join(repr(plain) for _, plain in table))


def _enum(annotation: Any, _: _Memo) -> Shape:
    def missing(value: Any) -> Any:
        """Ask the class: flags combine, and `_missing_` may know more."""
        if isinstance(value, bool):  # equal to 0 and 1, and not in the table
            raise MismatchError.of(wanted, value)
        try:
            return annotation(value)
        except Exception as error:
            raise MismatchError.refused(annotation.__qualname__, error) from error

    wanted = f"a value of {annotation.__qualname__}"
    table = {(type(m.value), m.value): m for m in annotation if _is_scalar(m.value)}
    return _choice(table, wanted, missing)


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _choice(
    table: dict[tuple[type, Any], Any], wanted: str, missing: Shape | None = None
) -> Shape:
    """Take what is in the table, by type and value: 1, 1.0 and true are equal, not the same."""

    def convert(value: Any) -> Any:
        if _is_scalar(value) and (type(value), value) in table:
            return table[type(value), value]
        if missing is not None:
            return missing(value)
        raise MismatchError.of(wanted, value)

    return convert


def _array(annotation: Any, memo: _Memo) -> Shape:
    make = _ARRAYS[typing_x.get_origin(annotation) or annotation]
    item = _shape(next(iter(typing_x.get_args(annotation)), Any), memo)
    wanted = describe(annotation)

    def convert(value: Any) -> Any:
        if type(value) is not list:
            raise MismatchError.of(wanted, value)
        items = (
            value if item is _anything else _each(zip(itertools.repeat(item), value))
        )
        try:
            return make(items)
        except TypeError as error:  # objects and arrays in a set
            raise MismatchError.refused(wanted, error) from error

    return convert


def _tuple(annotation: Any, memo: _Memo) -> Shape:
    arguments = typing_x.get_args(annotation)
    if annotation is tuple or arguments[1:] == (...,):
        return _array(annotation, memo)
    shapes = [_shape(argument, memo) for argument in arguments]
    wanted = describe(annotation)

    def convert(value: Any) -> Any:
        if type(value) is not list:
            raise MismatchError.of(wanted, value)
        if len(value) != len(shapes):
            what = f"expected {wanted}, got {len(value)} items"
            raise MismatchError(what)
        return tuple(_each(zip(shapes, value, strict=True)))

    return convert


def _each(pairs: Iterable[tuple[Shape, Any]]) -> list[Any]:
    """Convert the items of an array; a mismatch learns its index."""
    converted: list[Any] = []
    try:
        for shape, item in pairs:
            converted.append(shape(item))
    except MismatchError as error:
        error.under(len(converted))
        raise
    return converted


def _mapping(annotation: Any, memo: _Memo) -> Shape:
    key_type, value_type = typing_x.get_args(annotation) or (Any, Any)
    if bare(key_type) in _NOT_KEYS:
        msg = f"cannot decode a body into {describe(annotation)}: keys in JSON are strings"
        raise HandlerSignatureError(msg)
    key_shape, value_shape = _shape(key_type, memo), _shape(value_type, memo)
    wanted = describe(annotation)
    is_plain = key_shape in {_anything, _LEAVES[str]} and value_shape is _anything

    def convert(value: Any) -> Any:
        if type(value) is not dict:
            raise MismatchError.of(wanted, value)
        if is_plain:
            return value
        return {
            _at(key, key_shape, key): _at(key, value_shape, item)
            for key, item in value.items()
        }

    return convert


def _record(annotation: Any, memo: _Memo) -> Shape:
    """Take an object for a dataclass: the parameters of its `__init__`, by name."""
    kind = typing_x.get_origin(annotation) or annotation
    hints = fields_of(annotation)
    fields = {
        name: (hints[name], parameter.default is parameter.empty)
        for name, parameter in inspect.signature(kind).parameters.items()
        if name in hints
    }

    def make(values: dict[str, Any]) -> Any:
        try:
            return kind(**values)
        except Exception as error:  # its own checks, in `__post_init__`
            raise MismatchError.refused(describe(annotation), error) from error

    return _object(annotation, fields, memo, make)


def _typed_dict(annotation: Any, memo: _Memo) -> Shape:
    kind = typing_x.get_origin(annotation) or annotation
    fields = {
        # Under `from __future__ import annotations` the class does not know NotRequired.
        name: (hint, name in kind.__required_keys__ and not is_optional_key(hint))
        for name, hint in fields_of(annotation).items()
    }
    return _object(annotation, fields, memo, _anything)


def _object(
    annotation: object,
    fields: dict[str, tuple[object, bool]],
    memo: _Memo,
    make: Callable[[dict[str, Any]], Any],
) -> Shape:
    """Take an object with these fields (name: type, whether it must be there)."""
    if annotation in memo:
        return memo[annotation]
    wanted = describe(annotation)
    shapes: list[tuple[str, Shape, bool]] = []

    def convert(value: Any) -> Any:
        if type(value) is not dict:
            raise MismatchError.of(wanted, value)
        values = {}
        for name, shape, is_required in shapes:
            if name in value:
                values[name] = _at(name, shape, value[name])
            elif is_required:
                raise MismatchError.missing(wanted).under(name)
        return make(values)

    memo[annotation] = convert  # before its fields: one of them may be of its own type
    shapes.extend(
        (name, _shape(hint, memo), must) for name, (hint, must) in fields.items()
    )
    return convert


def _at(key: str, shape: Shape, value: Any) -> Any:
    """Convert what is under a key; a mismatch learns the key."""
    try:
        return shape(value)
    except MismatchError as error:
        error.under(key)
        raise


_ARRAYS: dict[object, Callable[[Any], Any]] = {
    list: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    tuple: tuple,
    set: set,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
    frozenset: frozenset,
}
_MAPPINGS = {dict, collections.abc.Mapping, collections.abc.MutableMapping}
_NOT_KEYS = {int, float, bool, None, type(None)}

_MAKERS: tuple[tuple[Callable[[Any], bool], Callable[[Any, _Memo], Shape]], ...] = (
    (lambda origin: isinstance(origin, TypeVar), _bound),
    ({typing.Union, types.UnionType}.__contains__, _union),
    (lambda origin: origin is typing.Literal, _literal),
    (lambda origin: origin is tuple, _tuple),
    (_ARRAYS.__contains__, _array),
    (_MAPPINGS.__contains__, _mapping),
    (typing_x.is_typeddict, _typed_dict),
    (lambda origin: isinstance(origin, EnumType), _enum),
    (
        lambda origin: isinstance(origin, type) and dataclasses.is_dataclass(origin),
        _record,
    ),
)
