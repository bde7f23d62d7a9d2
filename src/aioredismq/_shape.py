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
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import typing_extensions as typing_x

from ._errors import EncodeError, HandlerSignatureError
from ._hints import bare, describe, fields_of, is_alias, is_required, members
from ._json import MismatchError, dump
from ._models import make_parse
from ._scalars import Shape, anything, scalar_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Memo: TypeAlias = dict[object, Shape]


def make_shape(annotation: object) -> Shape:
    """Compile an annotation, once; what comes back does no introspection.

    Raises:
        HandlerSignatureError: It is not in the table above, or a name in it is not known.
    """
    return _shape(annotation, {})


def _shape(annotation: object, memo: _Memo) -> Shape:
    if not isinstance(annotation, collections.abc.Hashable):
        raise _unsupported(annotation)
    if annotation in memo:
        return memo[annotation]
    if not _has_name(annotation):
        return _make(bare(annotation), memo)
    memo[annotation] = lambda value: shape(value)  # it may contain itself
    shape = memo[annotation] = _make(bare(annotation), memo)
    return shape


def _has_name(annotation: object) -> bool:
    kind = typing_x.get_origin(annotation) or annotation
    return (
        is_alias(annotation)
        or dataclasses.is_dataclass(kind)
        or typing_x.is_typeddict(kind)
    )


def _make(annotation: Any, memo: _Memo) -> Shape:
    if shape := scalar_shape(annotation):
        return shape
    if parse := make_parse(annotation):
        return _model(parse)
    kind = typing_x.get_origin(annotation) or annotation
    for matches, make in _MAKERS:
        if matches(kind):
            return make(annotation, memo)
    raise _unsupported(annotation)


def _unsupported(annotation: object) -> HandlerSignatureError:
    return HandlerSignatureError(
        f"cannot decode a body into {describe(annotation)}: supported are JSON's own types, "
        "collections of them, dataclasses, TypedDict, Enum, Literal, datetime, date, time, UUID, "
        "Decimal, pydantic models and msgspec Structs"
    )


def _model(parse: Callable[[bytes], object]) -> Shape:
    """Take what a model takes, somewhere inside what is no model: by way of its JSON."""

    def convert(value: Any) -> Any:
        try:
            raw = dump(value)
        except EncodeError as error:  # a lone surrogate, written as an escape
            raise MismatchError.refused("JSON", error) from error
        return parse(raw)

    return convert


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


def _array(annotation: Any, memo: _Memo) -> Shape:
    make = _ARRAYS[typing_x.get_origin(annotation) or annotation]
    item = _shape(next(iter(typing_x.get_args(annotation)), Any), memo)
    wanted = describe(annotation)

    def convert(value: Any) -> Any:
        if type(value) is not list:
            raise MismatchError.of(wanted, value)
        items = value if item is anything else _each(zip(itertools.repeat(item), value))
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
    is_plain = bare(key_type) in {Any, str} and value_shape is anything

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
        name: (hint, is_required(hint, otherwise=name in kind.__required_keys__))
        for name, hint in fields_of(annotation).items()
    }
    return _object(annotation, fields, memo, anything)


def _object(
    annotation: object,
    fields: dict[str, tuple[object, bool]],
    memo: _Memo,
    make: Callable[[dict[str, Any]], Any],
) -> Shape:
    """Take an object with these fields (name: type, whether it must be there)."""
    wanted = describe(annotation)
    shapes = [(name, _shape(hint, memo), must) for name, (hint, must) in fields.items()]

    def convert(value: Any) -> Any:
        if type(value) is not dict:
            raise MismatchError.of(wanted, value)
        values = {}
        for name, shape, must in shapes:
            if name in value:
                values[name] = _at(name, shape, value[name])
            elif must:
                raise MismatchError.missing(wanted).under(name)
        return make(values)

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
    (lambda kind: isinstance(kind, TypeVar), _bound),
    ({typing.Union, types.UnionType}.__contains__, _union),
    (lambda kind: kind is tuple, _tuple),
    (_ARRAYS.__contains__, _array),
    (_MAPPINGS.__contains__, _mapping),
    (typing_x.is_typeddict, _typed_dict),
    (lambda kind: isinstance(kind, type) and dataclasses.is_dataclass(kind), _record),
)
