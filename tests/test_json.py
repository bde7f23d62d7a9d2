from __future__ import annotations

import enum
import json
import math
from collections import ChainMap
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq import EncodeError
from aioredismq import _json as room
from aioredismq._json import MismatchError, dump, load, step

if TYPE_CHECKING:
    from collections.abc import Callable

# Text that UTF-8 can carry, keys included.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


class Colour(enum.Enum):
    """Members whose values have a form of their own."""

    RED = "red"
    CREAM = Decimal("1.50")


class Level(enum.IntEnum):
    """Members that are numbers themselves."""

    HIGH = 3


@dataclass
class Point:
    """A dataclass with anything in it."""

    x: Any
    y: Any = 0


class Model(pydantic.BaseModel):
    """A pydantic model with an alias, keys that are numbers, and a value to convert."""

    at: datetime = pydantic.Field(alias="when")
    names: dict[int, str] = {}
    weight: float = 1.0


class Struct(msgspec.Struct):
    """A msgspec Struct with keys that are numbers, and a value to convert."""

    at: datetime
    names: dict[int, str] = {}
    weight: float = 1.0


NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


# Writing and reading back.


@given(JSON)
def test_any_json_value_comes_back_as_it_was(value: object) -> None:
    """Type by type: 1, 1.0 and true are equal, and not the same."""
    assert repr(load(dump(value))) == repr(value)


@given(JSON)
def test_what_is_written_is_compact_utf_8(value: object) -> None:
    """The text is what `json` writes without blanks and escapes."""
    expected = json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    assert dump(value) == expected.encode()


@given(JSON)
def test_the_encoder_of_another_python_writes_the_same(value: object) -> None:
    """Where `json` has no C encoder to build once, its ordinary one is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json.encoder, "c_make_encoder", None)
        slow = room._make_encode()

    assert "".join(slow(value, 0)).encode() == dump(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (NOON, '"2024-02-29T12:00:00+00:00"'),
        (datetime(2024, 2, 29, 12), '"2024-02-29T12:00:00"'),  # noqa: DTZ001 -- allowed
        (date(2024, 2, 29), '"2024-02-29"'),
        (time(12, 30), '"12:30:00"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Decimal("9.90"), '"9.90"'),
        (Colour.RED, '"red"'),
        (Colour.CREAM, '"1.50"'),
        (Level.HIGH, "3"),
        ((1, (2,)), "[1,[2]]"),
        (MappingProxyType({"a": 1}), '{"a":1}'),
        (ChainMap({"a": {"b": Decimal(1)}}), '{"a":{"b":"1"}}'),
        (Point(Point(1), [Point(None)]), '{"x":{"x":1,"y":0},"y":[{"x":null,"y":0}]}'),
        (
            Model(when=NOON, names={1: "a"}),
            '{"when":"2024-02-29T12:00:00Z","names":{"1":"a"},"weight":1.0}',
        ),
        (
            Struct(NOON, {1: "a"}),
            '{"at":"2024-02-29T12:00:00Z","names":{"1":"a"},"weight":1.0}',
        ),
        (
            {"a": [Struct(NOON)]},
            '{"a":[{"at":"2024-02-29T12:00:00Z","names":{},"weight":1.0}]}',
        ),
        (
            pydantic.RootModel[list[UUID]]([UUID(int=1)]),
            '["00000000-0000-0000-0000-000000000001"]',
        ),
        (
            pydantic.dataclasses.dataclass(Point)(NOON, 1),
            '{"x":"2024-02-29T12:00:00Z","y":1}',
        ),
    ],
)
def test_what_has_a_clear_form_takes_it(value: object, text: str) -> None:
    """Dataclasses, models, dates and the like, by themselves and inside."""
    assert dump(value) == text.encode()
    assert dump({"in": [value]}) == f'{{"in":[{text}]}}'.encode()


def _circle() -> object:
    circle: list[object] = []
    circle.append({"again": circle})
    return circle


def _deep() -> object:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


def _huge() -> object:
    return 10**5000


def _circle_of_objects() -> object:
    point = Point({})
    point.x["point"] = point
    return point


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (math.nan, "body: nan is not JSON"),
        ([1, -math.inf], "body[1]: -inf is not JSON"),
        ({"a b": [{"c": {1}}]}, "body['a b'][0].c: set has no JSON form"),
        ({"a": b"x"}, "body.a: bytes has no JSON form"),
        ({"a": object}, "body.a: type has no JSON form"),
        ({"a": Point}, "body.a: type has no JSON form"),
        ((n for n in "a"), "body: generator has no JSON form"),
        ({"a": 1, 2: 3}, "body: key 2 is int, must be str"),
        ({None: 3}, "body: key None is NoneType, must be str"),
        ([{"a": ({"b": {True: 3}},)}], "body[0].a[0].b: key True is bool, must be str"),
        (Point({"a": {1.5: 2}}), "body.x.a: key 1.5 is float, must be str"),
        (MappingProxyType({1: 2}), "body: key 1 is int, must be str"),
        ({"a": Decimal("NaN")}, "body.a: Decimal NaN has no JSON form"),
        (Decimal("-Infinity"), "body: Decimal -Infinity has no JSON form"),
        (Model(when=NOON, weight=math.nan), "body.weight: nan is not JSON"),
        (Struct(NOON, weight=math.inf), "body.weight: inf is not JSON"),
        (["\ud800"], "body[0]: lone surrogate '\\ud800' cannot be sent as UTF-8"),
        (
            {"\udfff": 1},
            "body: key '\\udfff': lone surrogate '\\udfff' cannot be sent as UTF-8",
        ),
        (_circle, "body[0].again: list contains itself"),
        (_circle_of_objects, "body.x.point: Point contains itself"),
        (_deep, "body: nested too deeply"),
        (
            _huge,
            "body: Exceeds the limit (4300 digits) for integer string conversion",
        ),
    ],
)
def test_what_json_cannot_say_is_refused_with_its_place(
    value: object, fault: str
) -> None:
    """Nothing is turned into something else: not NaN into null, not 1 into "1"."""
    if isinstance(value, FunctionType):  # what pytest could not show
        value = value()

    with pytest.raises(EncodeError) as caught:
        dump(value)

    assert str(caught.value).startswith(fault)
    assert caught.value.__cause__ is not None


@given(JSON, st.integers() | st.floats() | st.booleans() | st.none())
def test_a_key_that_is_no_string_is_found_wherever_it_is(
    value: object, key: object
) -> None:
    """However deep, and beside whatever else."""
    body = [value, {"a": [value, {"b": value, "c": {"d": value, key: value}}]}]

    with pytest.raises(
        EncodeError, match=r"^body\[1\]\.a\[1\]\.c: key .* must be str$"
    ):
        dump(body)


def test_an_object_that_fails_is_named() -> None:
    """A property, or a serializer of a model, may raise anything."""

    class Broken(pydantic.BaseModel):
        @pydantic.model_serializer
        def fail(self) -> str:
            raise ZeroDivisionError

    with pytest.raises(EncodeError, match=r"^body\.a: .*ZeroDivisionError"):
        dump({"a": Broken()})


# An encoder of the caller's.


@pytest.mark.parametrize(
    ("dumps", "raw"),
    [
        (orjson.dumps, b'{"a":1}'),
        (json.dumps, b'{"a": 1}'),
        (lambda _: bytearray(b"1"), b"1"),
        (lambda _: memoryview(b"2"), b"2"),
        (lambda _: "é", "é".encode()),
    ],
)
def test_another_encoder_may_return_text_or_bytes(
    dumps: Callable[[object], bytes | str], raw: bytes
) -> None:
    """`orjson` returns bytes, `json` text."""
    written = dump({"a": 1}, dumps)

    assert written == raw
    assert type(written) is bytes


def test_another_encoder_alone_decides_what_it_takes() -> None:
    """Keys and values are its own affair."""
    assert dump({1: {2}}, lambda value: repr(value)) == b"{1: {2}}"


@pytest.mark.parametrize("model", [Model(when=NOON), Struct(NOON)])
def test_another_encoder_gets_a_model_made_plain(model: object) -> None:
    """So that a faster encoder does not cost the models."""
    expected = {"weight": 1.0, "names": {}}

    plain = load(dump(model, orjson.dumps))

    assert isinstance(plain, dict)
    assert plain.items() >= expected.items()


@pytest.mark.parametrize(
    ("dumps", "fault"),
    [
        (lambda _: None, "body: dumps must return bytes or str, got NoneType"),
        (lambda _: "\ud800", "body: 'utf-8' codec can't encode"),
        (orjson.dumps, "body: Type is not JSON serializable: set"),
        (lambda _: 1 / 0, "body: division by zero"),
        (lambda _: [].index(()), "body: () is not in list"),
    ],
)
def test_what_another_encoder_refuses_is_refused(
    dumps: Callable[[object], Any], fault: str
) -> None:
    """In its own words."""
    with pytest.raises(EncodeError) as caught:
        dump({1}, dumps)

    assert str(caught.value).startswith(fault)


def test_an_error_without_words_is_named_by_its_class() -> None:
    """`KeyError()` says nothing else."""

    def dumps(_: object) -> str:
        raise NotImplementedError

    with pytest.raises(EncodeError, match=r"^body: NotImplementedError$"):
        dump(1, dumps)


# Reading what others wrote.


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b' \r\n\t{"a" : [ 1 ] } \n', {"a": [1]}),
        (b"\xef\xbb\xbf1", 1),
        (b'"\\ud83d\\ude00\\u0000"', "😀\0"),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b"1e2", 100.0),
        (b"-0", 0),
    ],
)
def test_json_of_others_is_read(raw: bytes, value: object) -> None:
    """Blanks, escapes, a byte order mark."""
    assert load(raw) == value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"1 2",
        b"nul",
        b"'a'",
        b'"\x00"',
        b"\xff",
        b"NaN",
        b"[-Infinity]",
        b"01",
        b"[1,]",
    ],
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    """NaN is not JSON, though `json` reads it."""
    with pytest.raises(ValueError, match=r"."):
        load(raw)


def test_what_is_nested_too_deeply_is_refused() -> None:
    """It must not reach a handler, and must not kill the process."""
    with pytest.raises(RecursionError):
        load(b"[" * 100_000)


@given(st.binary())
def test_rubbish_is_read_or_refused(raw: bytes) -> None:
    """Nothing else is raised."""
    try:
        value = load(raw)
    except ValueError:
        return
    assert load(dump(value)) == value


# Paths and mismatches.


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("a", ".a"),
        ("é_1", ".é_1"),
        ("a b", "['a b']"),
        ("", "['']"),
        ("1", "['1']"),
        (2, "[2]"),
    ],
)
def test_a_step_of_a_path_is_written_as_in_python(key: object, text: str) -> None:
    """A key that is no name is quoted."""
    assert step(key) == text


def test_the_path_of_a_mismatch_grows_on_the_way_up() -> None:
    """The innermost step is added first."""
    error = MismatchError.of("int", "1").under("price").under(2).under("items")

    assert (error.at, error.what) == (".items[2].price", "expected int, got str")


def test_a_refusal_without_words_is_named_by_its_class() -> None:
    """An assertion in `__post_init__` often has none."""
    assert (
        MismatchError.refused("Order", AssertionError()).what
        == "Order refused it: AssertionError"
    )
