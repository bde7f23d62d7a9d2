"""Single values: what JSON has as null, true, numbers and strings, checked and converted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from decimal import Decimal
from enum import EnumType
from typing import Any, Literal, TypeAlias, get_args, get_origin
from uuid import UUID

from ._errors import EncodeError
from ._json import MismatchError, dump, load

Shape: TypeAlias = Callable[[Any], Any]
"""From a JSON value to what an annotation asks for, or a `MismatchError`."""


def scalar_shape(annotation: object) -> Shape | None:
    """Make the shape of a single value; None when the annotation asks for something else."""
    if get_origin(annotation) is Literal:
        members = get_args(annotation)
        return _choice(members, " or ".join(map(repr, members)))
    if isinstance(annotation, EnumType):
        return _enum(annotation)
    return _SHAPES.get(annotation)


def anything(value: Any) -> Any:
    """Leave a value as it is."""
    return value


def _exactly(kind: type, name: str) -> Shape:
    """Take values of this type only; `bool` is no `int`."""

    def convert(value: Any) -> Any:
        if type(value) is not kind:
            raise MismatchError.of(name, value)
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
        except (ValueError, ArithmeticError) as error:
            raise MismatchError.refused(name, error) from error

    return convert


def _decimal(value: Any) -> Decimal:
    """Take strings and numbers; of a float, the digits that were in the JSON."""
    if type(value) not in {
        str,
        int,
        float,
        Decimal,
    }:  # a `loads` may make Decimals itself
        raise MismatchError.of("Decimal as str or number", value)
    try:
        number = Decimal(str(value))
    except ArithmeticError:
        number = Decimal("NaN")
    if not number.is_finite():
        what = f"expected Decimal, got a {type(value).__qualname__} that is no finite number"
        raise MismatchError(what)
    return number


def _enum(kind: EnumType) -> Shape:
    """Take the values of the members, as JSON has them."""
    wanted = f"a value of {kind.__qualname__}"

    def ask(value: Any) -> Any:
        """Let the class find it: flags combine, and `_missing_` may know more."""
        if isinstance(
            value, bool
        ):  # equal to 0 and 1, and to members with these values
            raise MismatchError.of(wanted, value)
        try:
            return kind(value)
        except Exception as error:
            raise MismatchError.refused(kind.__qualname__, error) from error

    return _choice(kind, wanted, ask)


def _choice(
    members: Iterable[object], wanted: str, otherwise: Shape | None = None
) -> Shape:
    """Take the JSON form of a member, and give the member.

    Looked up by type and value: 1, 1.0 and true are equal, and not the same.
    """
    table = {}
    for member in members:
        try:
            plain = load(dump(member))
        except EncodeError:
            continue
        if _is_scalar(plain):
            table[type(plain), plain] = member

    def convert(value: Any) -> Any:
        if _is_scalar(value) and (type(value), value) in table:
            return table[type(value), value]
        if otherwise is not None:
            return otherwise(value)
        raise MismatchError.of(wanted, value)

    return convert


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, _HASHABLE)


_HASHABLE = (str, int, float)
_SHAPES: dict[object, Shape] = {
    Any: anything,
    object: anything,
    type(None): _exactly(type(None), "None"),
    bool: _exactly(bool, "bool"),
    int: _exactly(int, "int"),
    str: _exactly(str, "str"),
    float: _float,
    datetime: _from_text(datetime.fromisoformat, "datetime"),
    date: _from_text(date.fromisoformat, "date"),
    time: _from_text(time.fromisoformat, "time"),
    UUID: _from_text(UUID, "UUID"),
    Decimal: _decimal,
}
