from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import pydantic
import pytest

from aioredismq import HandlerSignatureError
from aioredismq._json import MismatchError
from aioredismq._models import make_parse

T = TypeVar("T")


class Model(pydantic.BaseModel):
    """A model with something inside."""

    price: float
    parts: list[Model] = []


class Struct(msgspec.Struct):
    """A Struct with something inside."""

    price: float
    parts: list[Struct] = []


class Page(pydantic.BaseModel, Generic[T]):
    """A generic model."""

    items: list[T]


class Strip(msgspec.Struct, Generic[T]):
    """A generic Struct."""

    items: list[T]


class Cat(msgspec.Struct, tag=True):
    """One of two that are told apart by their tag."""

    lives: int


class Dog(msgspec.Struct, tag=True):
    """The other."""

    name: str


@pydantic.dataclasses.dataclass
class Order:
    """A dataclass of pydantic's."""

    id: int


@dataclass
class Plain:
    """A dataclass of nobody's."""

    id: int


class Stubborn(pydantic.BaseModel):
    """A model with checks of its own that raise what pydantic does not expect."""

    id: int

    @pydantic.field_validator("id")
    @classmethod
    def refuse(cls, _: int) -> int:
        """Fail."""
        raise LookupError("never seen")


class StubbornStruct(msgspec.Struct):
    """A Struct with checks of its own that raise what msgspec does not expect."""

    id: int

    def __post_init__(self) -> None:
        """Fail."""
        raise LookupError("never seen")


@pytest.mark.parametrize(
    ("annotation", "raw", "value"),
    [
        (Model, b'{"price":1,"new":2}', Model(price=1)),
        (list[Model], b'[{"price":1}]', [Model(price=1)]),
        (dict[str, Annotated[Model, 1]], b'{"a":{"price":1}}', {"a": Model(price=1)}),
        (Model | None, b"null", None),
        (Model | Plain, b'{"id":1}', Plain(1)),
        (Page[Model], b'{"items":[{"price":1}]}', Page[Model](items=[Model(price=1)])),
        (Order, b'{"id":"1"}', Order(id=1)),
        (Struct, b'{"price":1,"new":2}', Struct(1)),
        (tuple[Struct, ...], b'[{"price":1}]', (Struct(1),)),
        (Struct | None, b"null", None),
        (Strip[Struct], b'{"items":[{"price":1}]}', Strip([Struct(1)])),
        (Cat | Dog, b'{"type":"Dog","name":"Rex"}', Dog("Rex")),
        (Literal["a"] | Struct, b'"a"', "a"),
    ],
    ids=str,
)
def test_a_model_is_read_by_its_library(
    annotation: object, raw: bytes, value: object
) -> None:
    """By itself, and inside any type the library knows."""
    parse = make_parse(annotation)

    assert parse is not None
    assert parse(raw) == value


@pytest.mark.parametrize(
    "annotation", [int, Plain, list[Plain], Any, None, "Model", T], ids=str
)
def test_what_mentions_no_model_is_left_to_others(annotation: object) -> None:
    """Nothing is imported for it."""
    assert make_parse(annotation) is None


def test_an_alias_that_contains_itself_ends() -> None:
    """It is looked through once."""

    class TypeAliasType:  # what `type Tree = list[Tree]` makes from Python 3.12 on
        @cached_property
        def __value__(self) -> object:
            return list[tree]

        __type_params__ = ()

    tree = TypeAliasType()

    assert make_parse(tree) is None


@pytest.mark.parametrize(
    ("annotation", "raw", "at", "what"),
    [
        (
            Model,
            b'{"price":1,"parts":[{"price":"x"}]}',
            ".parts[0].price",
            "Input should be a valid number, unable to parse string as a number, got str",
        ),
        (
            list[Model],
            b'[{"parts":1}]',
            "[0].price",
            "Field required, got dict (and 1 more)",
        ),
        (
            Model,
            b"{",
            "",
            "Invalid JSON: EOF while parsing an object at line 1 column 1",
        ),
        (Model, b"1", "", "Input should be an object, got int"),
        (Stubborn, b'{"id":1}', "", "Stubborn refused it: never seen"),
        (
            Struct,
            b'{"price":1,"parts":[{"price":"x"}]}',
            ".parts[0].price",
            "Expected `float`, got `str`",
        ),
        (list[Struct], b'[{"parts":1}]', "[0].parts", "Expected `array`, got `int`"),
        (
            dict[str, Struct],
            b'{"a":{"price":null}}',
            "[...].price",
            "Expected `float`, got `null`",
        ),
        (Struct, b"{", "", "Input data was truncated"),
        (Struct, b"1", "", "Expected `object`, got `int`"),
        (StubbornStruct, b'{"id":1}', "", "StubbornStruct refused it: never seen"),
    ],
)
def test_what_a_model_refuses_is_named_with_its_place(
    annotation: object, raw: bytes, at: str, what: str
) -> None:
    """In the library's words."""
    parse = make_parse(annotation)
    assert parse is not None

    with pytest.raises(MismatchError) as caught:
        parse(raw)

    assert (caught.value.at, caught.value.what) == (at, what)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("annotation", "start"),
    [
        (Model | Struct, "cannot decode a body into Model | Struct: "),
        (
            Struct | Strip[int],
            "cannot decode a body into Struct | tests.test_models.Strip[int]: ",
        ),
    ],
)
def test_what_the_library_does_not_take_is_refused_at_once(
    annotation: object, start: str
) -> None:
    """Not with the first message."""
    with pytest.raises(HandlerSignatureError) as caught:
        make_parse(annotation)

    assert str(caught.value).startswith(start)
    assert caught.value.__cause__ is not None


def test_neither_library_is_imported_for_others() -> None:
    """They are optional: bodies are written and read without them."""
    program = """
import dataclasses, sys
from aioredismq._codec import decoder, encode, open_envelope

@dataclasses.dataclass
class Order:
    id: int

fields = encode([Order(1)])
assert decoder(list[Order])(open_envelope(list(fields))) == [Order(1)]
assert not {"pydantic", "msgspec"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)

    assert done.returncode == 0
