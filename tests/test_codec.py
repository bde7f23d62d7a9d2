from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NewType
from uuid import UUID

import msgspec
import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from aioredismq import DecodeError, EncodeError, HandlerSignatureError
from aioredismq._codec import (
    Envelope,
    decoder,
    encode,
    encode_original,
    is_original_marker,
    open_envelope,
    open_original,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=5,
).filter(lambda value: not isinstance(value, str))
NAMES = TEXT.filter(
    lambda name: name not in {"", "body", "content-type"} and not name.startswith("mq-")
)
HEADERS = st.none() | st.dictionaries(NAMES, TEXT)
FIELDS = st.lists(
    st.binary()
    | st.sampled_from([b"body", b"content-type", b"mq-id", b"text/plain", b"mq-"])
)


@dataclass
class Item:
    """Something ordered."""

    price: float


@dataclass
class Order:
    """A dataclass with some of another."""

    items: list[Item]


@dataclass
class Tree:
    """A dataclass that contains itself."""

    children: list[Tree]


class Model(pydantic.BaseModel):
    """A pydantic model."""

    price: float


class Struct(msgspec.Struct):
    """A msgspec Struct."""

    price: float


OrderName = NewType("OrderName", str)
Raw = TypeAliasType("Raw", bytes)


def envelope(raw: bytes | None, content_type: str = "application/json") -> Envelope:
    """Make an envelope with a body only."""
    return Envelope(raw, content_type, {}, {})


# Sending.


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"a": [1, None]}, (b"body", b'{"a":[1,null]}')),
        (None, (b"body", b"null")),
        (0, (b"body", b"0")),
        ([], (b"body", b"[]")),
        (Order([Item(1.5)]), (b"body", b'{"items":[{"price":1.5}]}')),
        (Model(price=1), (b"body", b'{"price":1.0}')),
        (Struct(1.0), (b"body", b'{"price":1.0}')),
        ("é", (b"body", "é".encode(), b"content-type", b"text/plain")),
        ("", (b"body", b"", b"content-type", b"text/plain")),
        (b"\xff", (b"body", b"\xff", b"content-type", b"application/octet-stream")),
        (
            bytearray(b"a"),
            (b"body", b"a", b"content-type", b"application/octet-stream"),
        ),
        (
            memoryview(b"abc")[::2],
            (b"body", b"ac", b"content-type", b"application/octet-stream"),
        ),
    ],
    ids=lambda value: "memoryview" if isinstance(value, memoryview) else repr(value),
)
def test_a_body_becomes_fields(body: object, fields: tuple[bytes, ...]) -> None:
    """The content type is left out for JSON."""
    encoded = encode(body)

    assert encoded == fields
    assert all(type(part) is bytes for part in encoded)
    assert encode(body, {}) == fields
    assert encode(body, {"a": "é"}) == (*fields, b"a", "é".encode())


def test_headers_come_last_and_in_order() -> None:
    """Any mapping will do."""
    headers = MappingProxyType({"b": "1", "a": "", "Body": "2", "mq": "3"})

    assert encode(1, headers)[2:] == (b"b", b"1", b"a", b"", b"Body", b"2", b"mq", b"3")


def test_another_encoder_is_for_json_only() -> None:
    """Text and bytes go as they are."""
    assert encode({"a": 1}, dumps=orjson.dumps) == (b"body", b'{"a":1}')
    assert encode({"a": 1}, dumps=json.dumps) == (b"body", b'{"a": 1}')
    assert encode("a", dumps=json.dumps)[1] == b"a"
    assert encode(b"a", dumps=json.dumps)[1] == b"a"


RULE = "a header's name must not be empty, 'body' or 'content-type', nor begin with 'mq-', got "


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ({"body": "1"}, RULE + "'body'"),
        ({"a": "1", "content-type": "1"}, RULE + "'content-type'"),
        ({"mq-id": "1"}, RULE + "'mq-id'"),
        ({"": "1"}, RULE + "''"),
        ({"a": 1}, "headers must be str to str, got 'a': int"),
        ({"a": None}, "headers must be str to str, got 'a': NoneType"),
        ({1: "a"}, "headers must be str to str, got 1: str"),
        ({b"a": "a"}, "headers must be str to str, got b'a': str"),
        (
            {"\ud800": "1"},
            "header '\\ud800': lone surrogate '\\ud800' cannot be sent as UTF-8",
        ),
        (
            {"a": "1\ud800"},
            "header 'a': lone surrogate '\\ud800' cannot be sent as UTF-8",
        ),
        ([("a", "1")], "headers must be a mapping of str to str, got list"),
    ],
)
def test_a_header_that_would_not_come_back_is_refused(headers: Any, fault: str) -> None:
    """With the rule and the offender."""
    with pytest.raises(EncodeError) as caught:
        encode({}, headers)

    assert str(caught.value) == fault


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"a": {1}}, "body.a: set has no JSON form"),
        (math.nan, "body: nan is not JSON"),
        ("a\ud800", "body: lone surrogate '\\ud800' cannot be sent as UTF-8"),
    ],
)
def test_a_body_that_cannot_be_sent_is_refused(body: object, fault: str) -> None:
    """With its place and the offender."""
    for write in (encode, encode_original):
        with pytest.raises(EncodeError) as caught:
            write(body)

        assert str(caught.value) == fault


# Sending and receiving.


@given(JSON | TEXT | st.binary(), HEADERS)
def test_what_is_sent_comes_back(body: object, headers: dict[str, str] | None) -> None:
    """Body and headers, to a handler without annotation."""
    opened = open_envelope(list(encode(body, headers)))

    assert repr(decoder(None)(opened)) == repr(body)
    assert opened.headers == (headers or {})
    assert opened.meta == {}


@given(JSON | TEXT)
def test_what_is_sent_the_original_way_comes_back(body: object) -> None:
    """Text as a JSON string, as JavaScript does."""
    opened = open_original(list(encode_original(body)))

    assert repr(decoder(None)(opened)) == repr(body)
    assert opened.content_type == "application/json"


# Receiving.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([b"body", b"1"], Envelope(b"1", "application/json", {}, {})),
        (
            [b"body", b"1", b"a", b"b"],
            Envelope(b"1", "application/json", {"a": "b"}, {}),
        ),
        (
            [b"mq-id", b"1-0", b"content-type", b"text/plain", b"body", b"x"],
            Envelope(b"x", "text/plain", {}, {"mq-id": b"1-0"}),
        ),
        (
            [b"body", b"1", b"content-type", b""],
            Envelope(b"1", "application/json", {}, {}),
        ),
        ([], Envelope(None, "application/json", {}, {})),
        ([b"body"], Envelope(None, "application/json", {}, {})),
        ([b"a", b"b"], Envelope(None, "application/json", {"a": "b"}, {})),
        ([b"body", b"1", b"a"], Envelope(b"1", "application/json", {}, {})),
        ([b"", b""], Envelope(None, "application/json", {"": ""}, {})),
        (
            [b"\xff", b"\xfe"],
            Envelope(None, "application/json", {"\\xff": "\\xfe"}, {}),
        ),
        (
            [b"mq-\xff", b"\xfe"],
            Envelope(None, "application/json", {}, {"mq-\\xff": b"\xfe"}),
        ),
        (
            [b"content-type", b"\xff", b"body", b"1"],
            Envelope(b"1", "\\xff", {}, {}),
        ),
        (
            [
                b"body",
                b"1",
                b"body",
                b"2",
                b"a",
                b"1",
                b"a",
                b"2",
                b"mq-a",
                b"1",
                b"mq-a",
                b"2",
                b"content-type",
                b"1",
                b"content-type",
                b"2",
            ],
            Envelope(b"1", "1", {"a": "1"}, {"mq-a": b"1"}),
        ),
    ],
    ids=repr,
)
def test_an_entry_is_taken_apart(fields: list[bytes], expected: Envelope) -> None:
    """Of fields with the same name the first counts; rubbish is shown, not refused."""
    assert open_envelope(fields) == expected


PIECES = [b"\\udcff", b"\\ud", b"\\x", b"\xff", b"\xc3", b"\xa9", b"\xed\xa0\x80", b"a"]


@given(st.lists(st.sampled_from(PIECES)).map(b"".join) | st.binary())
def test_what_is_not_text_is_shown_with_backslashes(value: bytes) -> None:
    """As Python shows it, whatever it is."""
    shown = open_envelope([b"a", value]).headers["a"]

    assert shown == value.decode(errors="backslashreplace")


DECODERS = [
    decoder(annotation)
    for annotation in (
        None,
        bytes,
        str,
        dict,
        Order,
        Model,
        Struct,
        int | None,
        str | None,
    )
]


@given(FIELDS)
def test_no_entry_is_too_strange(fields: list[bytes]) -> None:
    """Whatever is stored opens; whatever opens is read or refused, by any handler."""
    for opened in (open_envelope(fields), open_original(fields)):
        for annotation in (
            None,
            bytes,
            str,
            dict,
            Order,
            Model,
            Struct,
            int | None,
            str | None,
        ):
            try:
                decoder(annotation)(opened)
            except DecodeError as error:
                assert str(error)  # noqa: PT017 -- one of the two is what is claimed
    assert is_original_marker(fields) is False


# The original's entries.


def test_an_entry_is_written_as_the_original_does() -> None:
    """The JSON text is the name of the field, a random number its value."""
    name, number = encode_original({"a": "é"})
    _, other = encode_original({"a": "é"})

    assert name == '{"a":"é"}'.encode()
    assert 0 <= float(number) < 1
    assert number != other


def test_another_encoder_writes_the_original_way_too() -> None:
    """It is JSON all the same."""
    assert encode_original({"a": 1}, None, json.dumps)[0] == b'{"a": 1}'


@pytest.mark.parametrize(
    ("body", "headers", "fault"),
    [
        (
            1,
            {"a": "b"},
            'wire="original" has no place for headers: send them inside the body',
        ),
        (b"1", None, "body: bytes has no JSON form"),
    ],
)
def test_the_original_has_no_place_for_some(
    body: object, headers: dict[str, str] | None, fault: str
) -> None:
    """Headers, and bytes."""
    with pytest.raises(EncodeError) as caught:
        encode_original(body, headers)

    assert str(caught.value) == fault


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([b'{"a":1}', b"0.5"], Envelope(b'{"a":1}', "application/json", {}, {})),
        (
            [b"mq-attempt", b"2", b'{"a":1}', b"0.5", b'{"b":1}', b"0.5"],
            Envelope(b'{"a":1}', "application/json", {}, {"mq-attempt": b"2"}),
        ),
        (
            [b"body", b"x", b"content-type", b"text/plain"],
            Envelope(b"x", "text/plain", {}, {}),
        ),
        (
            [b"body", b"1", b"a", b"body"],
            Envelope(b"1", "application/json", {"a": "body"}, {}),
        ),
        (
            [b"mq-id", b"1-0", b"body", b"1"],
            Envelope(b"1", "application/json", {}, {"mq-id": b"1-0"}),
        ),
        ([b"[1]", b"body"], Envelope(b"[1]", "application/json", {}, {})),
        ([b"[1]"], Envelope(None, "application/json", {}, {})),
        ([], Envelope(None, "application/json", {}, {})),
    ],
    ids=repr,
)
def test_an_entry_of_the_original_is_taken_apart(
    fields: list[bytes], expected: Envelope
) -> None:
    """One of ours is known by its field `body`, which is no JSON text."""
    assert open_original(fields) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b'{"queueInitialized":true,"queueName":"orders"}', True),
        (b'{"queueName": "orders", "queueInitialized": true}', True),
        (b'{"queueInitialized":false,"queueName":"orders"}', False),
        (b'{"queueInitialized":1,"queueName":"orders"}', False),
        (b'{"queueInitialized":true}', False),
        (b'{"queueInitialized":true,"queueName":"orders","more":1}', False),
        (b'{"queueInitialized":true,"queueName":"orders"', False),
        (b'{"queueInitialized":' + b"[" * 100_000, False),
        (b'["queueInitialized","queueName"]', False),
        (b'"queueInitialized"', False),
        (b'{"a":1}', False),
        (b"body", False),
    ],
    ids=lambda value: value[:60] if isinstance(value, bytes) else None,
)
def test_the_marker_of_the_original_is_known(name: bytes, expected: bool) -> None:
    """By its two keys, and nothing else."""
    assert is_original_marker([name, b"0.5"]) is expected


def test_an_empty_entry_is_no_marker() -> None:
    """There is none in Redis, but a fake may send one."""
    assert is_original_marker([]) is False


# Reading by annotation.


@pytest.mark.parametrize("annotation", [None, Any, object, Annotated[Any, 1]], ids=repr)
@pytest.mark.parametrize(
    ("content_type", "raw", "body"),
    [
        ("application/json", b'{"a":1}', {"a": 1}),
        ("Application/JSON; charset=utf-8", b"1", 1),
        ("application/problem+json", b"1", 1),
        ("text/plain", b"1", "1"),
        ("text/csv; charset=utf-8", b"1", "1"),
        ("application/octet-stream", b"1", b"1"),
        ("image/png", b"1", b"1"),
        ("rubbish", b"1", b"1"),
    ],
)
def test_without_an_annotation_the_content_type_decides(
    annotation: object, content_type: str, raw: bytes, body: object
) -> None:
    """JSON, text, or bytes."""
    assert decoder(annotation)(envelope(raw, content_type)) == body


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "image/png"]
)
@pytest.mark.parametrize(
    ("annotation", "raw", "body"),
    [
        (bytes, b"1", b"1"),
        (Raw, b"1", b"1"),
        (str, b'"1"', '"1"'),
        (OrderName, "é".encode(), "é"),
        (int, b"1", 1),
        (type(None), b"null", None),
        (dict, b' {"a":1}', {"a": 1}),
        (dict[str, int] | list[int], b"[1]", [1]),
        (Order, b'{"items":[{"price":1}]}', Order([Item(1.0)])),
        (list[Item], b'[{"price":1}]', [Item(1.0)]),
        (Annotated[Item, 1], b'{"price":1}', Item(1.0)),
        (Model, b'{"price":1}', Model(price=1)),
        (list[Struct], b'[{"price":1}]', [Struct(1.0)]),
    ],
    ids=repr,
)
def test_an_annotation_decides_whatever_the_content_type(
    annotation: object, raw: bytes, body: object, content_type: str
) -> None:
    """`bytes` is what is stored, `str` its text, everything else JSON."""
    assert decoder(annotation)(envelope(raw, content_type)) == body


@pytest.mark.parametrize(
    ("annotation", "raw", "content_type", "body"),
    [
        (str | None, b"null", "application/json", None),
        (str | None, b"null", "text/plain", "null"),
        (str | None, b'"a"', "application/json", "a"),
        (bytes | None, b"null", "application/json", None),
        (bytes | None, b"null", "image/png", b"null"),
        (bytes | str, b"1", "text/plain", "1"),
        (bytes | dict, b'{"a":1}', "application/json", {"a": 1}),
        (bytes | dict, b'{"a":1}', "text/plain", {"a": 1}),
        (str | Item, b'{"price":1}', "application/json", Item(1.0)),
        (str | list[Model], b'[{"price":1}]', "application/json", [Model(price=1)]),
        (str | int | None, b"1", "application/json", 1),
    ],
    ids=repr,
)
def test_a_union_with_text_or_bytes_takes_these_by_content_type(
    annotation: object, raw: bytes, content_type: str, body: object
) -> None:
    """The other members read JSON."""
    assert decoder(annotation)(envelope(raw, content_type)) == body


@pytest.mark.parametrize(
    ("annotation", "raw", "content_type", "fault"),
    [
        (
            None,
            b"{",
            "application/json",
            "body is not JSON: Expecting property name enclosed",
        ),
        (
            None,
            b"\xff",
            "application/json",
            "body is not JSON: 'utf-8' codec can't decode byte 0xff",
        ),
        (None, b"NaN", "application/json", "body is not JSON: NaN is not JSON"),
        (
            None,
            b"\xff",
            "text/plain",
            "body is not UTF-8 text: 'utf-8' codec can't decode byte",
        ),
        (
            str,
            b"\xff",
            "application/json",
            "body is not UTF-8 text: 'utf-8' codec can't decode",
        ),
        (dict, b"", "application/json", "body is not JSON: Expecting value"),
        (
            dict,
            b"[" * 100_000,
            "application/json",
            "body is not JSON: maximum recursion depth",
        ),
        (dict, b"[]", "application/json", "body: expected dict, got list"),
        (
            Order,
            b'{"items":[{"price":1},{"price":"x"}]}',
            "text/plain",
            "body.items[1].price: expected float, got str",
        ),
        (
            Tree,
            b'{"children":[' * 300 + b"]}" * 300,
            "application/json",
            "body is nested too deeply",
        ),
        (
            Model,
            b'{"price":"x"}',
            "application/json",
            "body.price: Input should be a valid number",
        ),
        (Model, b"{", "application/json", "body: Invalid JSON: EOF"),
        (
            list[Struct],
            b'[{"price":"x"}]',
            "application/json",
            "body[0].price: Expected `float`, got `str`",
        ),
        (bytes | str, b"1", "application/json", "body: expected bytes | str, got int"),
        (str | Item, b"1", "application/json", "body: expected Item, got int"),
        (bytes | None, b"1", "text/plain", "body: expected None, got int"),
        (bytes | None, b"x", "text/plain", "body is not JSON: Expecting value"),
    ],
    ids=lambda value: repr(value)[:80],
)
def test_what_is_not_what_the_handler_asks_for_is_refused(
    annotation: object, raw: bytes, content_type: str, fault: str
) -> None:
    """With what is wrong, and where."""
    with pytest.raises(DecodeError) as caught:
        decoder(annotation)(envelope(raw, content_type))

    assert str(caught.value).startswith(fault)


@pytest.mark.parametrize(
    "annotation", [None, bytes, str, dict, Order, Model, Struct, str | None], ids=repr
)
@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ([], "the entry has no field 'body', only nothing"),
        (
            [b"a", b"1", b"mq-id", b"2"],
            "the entry has no field 'body', only 'a', 'mq-id'",
        ),
        ([b"x" * 1000, b"1"], "the entry has no field 'body', only '" + "x" * 199),
    ],
    ids=["empty", "others", "long"],
)
def test_an_entry_without_a_body_is_refused(
    annotation: object, fields: list[bytes], fault: str
) -> None:
    """With the names of the fields it has instead."""
    with pytest.raises(DecodeError) as caught:
        decoder(annotation)(open_envelope(fields))

    assert str(caught.value) == fault


def test_the_cause_of_a_refusal_is_kept() -> None:
    """It tells more than fits into a line."""
    with pytest.raises(DecodeError) as json_error:
        decoder(dict)(envelope(b"{"))
    with pytest.raises(DecodeError) as model_error:
        decoder(Model)(envelope(b"{}"))
    with pytest.raises(DecodeError) as text_error:
        decoder(list[UUID])(envelope(b'["1"]'))
    with pytest.raises(DecodeError) as own_error:
        decoder(int)(envelope(b'"1"'))

    assert isinstance(json_error.value.__cause__, json.JSONDecodeError)
    assert isinstance(model_error.value.__cause__, pydantic.ValidationError)
    assert isinstance(text_error.value.__cause__, ValueError)
    assert own_error.value.__cause__ is None


@pytest.mark.parametrize(
    ("annotation", "loads", "body"),
    [
        (None, lambda raw: raw.decode().upper(), '{"PRICE":1.10}'),
        (dict, orjson.loads, {"price": 1.1}),
        (dict, partial(json.loads, parse_float=Decimal), {"price": Decimal("1.10")}),
        (
            dict[str, Decimal],
            partial(json.loads, parse_float=Decimal),
            {"price": Decimal("1.10")},
        ),
        (Item, orjson.loads, Item(1.1)),
        (dict | bytes, orjson.loads, {"price": 1.1}),
        (Model, lambda _: 1 / 0, Model(price=1.1)),
    ],
)
def test_another_decoder_is_used(
    annotation: object, loads: Callable[[bytes], object], body: object
) -> None:
    """For all but models, which bring their own."""
    assert decoder(annotation, loads)(envelope(b'{"price":1.10}')) == body


@pytest.mark.parametrize("annotation", [None, dict, Item])
def test_whatever_another_decoder_raises_is_a_refusal(annotation: object) -> None:
    """It must not look as if the handler had failed."""
    with pytest.raises(DecodeError, match=r"^body is not JSON: division by zero$"):
        decoder(annotation, lambda _: 1 / 0)(envelope(b"1"))


@pytest.mark.parametrize(
    "annotation", ["Order", list[bytes], complex, bytes | complex, [int]], ids=repr
)
def test_what_bodies_cannot_be_read_into_is_refused_at_once(annotation: object) -> None:
    """When the handler is registered."""
    with pytest.raises(HandlerSignatureError, match=r"^cannot decode a body into "):
        decoder(annotation)
