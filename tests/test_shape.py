from __future__ import annotations

import collections.abc as abc
import typing
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    TypedDict,
    TypeVar,
)
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from aioredismq import HandlerSignatureError
from aioredismq._json import MismatchError, dump, load
from aioredismq._shape import make_shape

T = TypeVar("T")
N = TypeVar("N", bound=int)
UserId = NewType("UserId", int)
Pair = TypeAliasType("Pair", tuple[T, T], type_params=(T,))


@dataclass
class Item:
    """Something ordered."""

    price: float
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A dataclass with a field of every kind."""

    id: UUID
    items: list[Item]
    user: UserId
    at: datetime
    total: Decimal | None = None
    state: Literal["new", "paid"] = "new"
    tags: tuple[str, ...] = ()
    notes: dict[str, str | int] = field(default_factory=dict)
    where: tuple[float, float] | None = None
    parent: Order | None = None
    parts: Final[int] = 0


@dataclass
class Checked:
    """A dataclass with a rule, something computed, and something that is not kept."""

    total: int
    factor: InitVar[int]
    product: int = field(init=False)

    def __post_init__(self, factor: int) -> None:
        """Check and compute."""
        if self.total < 0:
            raise ValueError("total must be 0 or more")
        self.product = self.total * factor


@dataclass
class Page(Generic[T]):
    """A generic, recursive dataclass."""

    items: list[T]
    next: Page[T] | None = None


@dataclass
class Orders(Page[Item]):
    """Subscripted in the list of bases."""


@dataclass
class Tree:
    """A dataclass that contains itself."""

    children: list[Tree]


@dataclass
class Cat:
    """One of two."""

    lives: int


@dataclass
class Dog:
    """The other."""

    name: str


class Options(TypedDict):
    """Keys that must and need not be there."""

    depth: int
    label: NotRequired[str]


class Loose(TypedDict, total=False):
    """Keys that need not be there, but one."""

    depth: typing.Required[int]
    label: str


class Cell(TypedDict, Generic[T]):
    """A generic dict."""

    value: T


class Model(pydantic.BaseModel):
    """A pydantic model."""

    price: float


class Struct(msgspec.Struct):
    """A msgspec Struct."""

    price: float


@dataclass
class Mixed:
    """A dataclass of models of others."""

    models: list[Model]
    struct: Struct | None = None


class Point(NamedTuple):
    """Not supported: its form in JSON is an array without names."""

    x: int


@dataclass
class Odd:
    """A dataclass with a field that cannot be read."""

    raw: bytes


@dataclass
class Unknown:
    """A dataclass whose field names something that is not there."""

    what: Missing  # noqa: F821 -- that is what is tested


@pytest.mark.parametrize(
    ("annotation", "value", "result"),
    [
        (list, [1, "a"], [1, "a"]),
        (list[int], [1], [1]),
        (abc.Sequence[Item], [{"price": 1}], [Item(1.0)]),
        (abc.Iterable[int], [1], [1]),
        (typing.List[int], [1], [1]),  # noqa: UP006 -- the other make of list
        (set[int], [1, 1], {1}),
        (abc.Set[str], ["a"], {"a"}),
        (frozenset[int], [1], frozenset({1})),
        (tuple, [1, "a"], (1, "a")),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[()], [], ()),
        (Pair[int], [1, 2], (1, 2)),
        (dict, {"a": [1]}, {"a": [1]}),
        (dict[str, Any], {"a": [1]}, {"a": [1]}),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (dict[UUID, Item], {str(UUID(int=1)): {"price": 1}}, {UUID(int=1): Item(1.0)}),
        (dict[Literal["a"], int], {"a": 1}, {"a": 1}),
        (abc.Mapping[str, list[int]], {"a": [1]}, {"a": [1]}),
        (int | None, None, None),
        (Decimal | None, "1.0", Decimal("1.0")),
        (int | str, "1", "1"),
        (float | int, 1, 1),
        (float | str, 1, 1.0),
        (str | datetime, "2024-02-29T12:00:00Z", "2024-02-29T12:00:00Z"),
        (datetime | str, "2024-02-29T12:00:00Z", datetime(2024, 2, 29, 12, tzinfo=UTC)),
        (datetime | str, "noon", "noon"),
        (typing.Optional[int], 1, 1),  # noqa: UP045 -- the other make of union
        (Cat | Dog, {"name": "Rex"}, Dog("Rex")),
        (list[Cat | Dog], [{"lives": 9}, {"name": "Rex"}], [Cat(9), Dog("Rex")]),
        (Annotated[int, "ignored"], 1, 1),
        (Annotated[list[UserId], 1], [1], [1]),
        (N, 1, 1),
        (T, {"a": 1}, {"a": 1}),
        (Item, {"price": 2, "new": True}, Item(2.0)),
        (Checked, {"total": 2, "factor": 3, "product": 100}, Checked(2, 3)),
        (Tree, {"children": [{"children": []}]}, Tree([Tree([])])),
        (
            Page[Item],
            {"items": [{"price": 1}], "next": {"items": []}},
            Page([Item(1.0)], Page([])),
        ),
        (Page, {"items": [1]}, Page([1])),
        (Orders, {"items": [{"price": 1}]}, Orders([Item(1.0)])),
        (Options, {"depth": 1, "new": True}, {"depth": 1}),
        (Options, {"depth": 1, "label": "a"}, {"depth": 1, "label": "a"}),
        (Loose, {"depth": 1}, {"depth": 1}),
        (Cell[Item], {"value": {"price": 1}}, {"value": Item(1.0)}),
        (
            Mixed,
            {"models": [{"price": "1"}], "struct": {"price": 1}},
            Mixed([Model(price=1)], Struct(1.0)),
        ),
    ],
    ids=repr,
)
def test_a_value_becomes_what_the_annotation_says(
    annotation: object, value: object, result: object
) -> None:
    """The type too, at each depth."""
    assert repr(make_shape(annotation)(value)) == repr(result)


@pytest.mark.parametrize(
    ("annotation", "value", "at", "what"),
    [
        (list, {}, "", "expected list, got dict"),
        (list[int], [1, "a"], "[1]", "expected int, got str"),
        (list[list[int]], [[], [1, None]], "[1][1]", "expected int, got NoneType"),
        (set[int], "a", "", "expected set[int], got str"),
        (set, [[]], "", "set refused it: unhashable type: 'list'"),
        (tuple[int, str], [1], "", "expected tuple[int, str], got 1 items"),
        (tuple[int, str], [1, 2], "[1]", "expected str, got int"),
        (tuple[int, str], {}, "", "expected tuple[int, str], got dict"),
        (tuple[int, ...], [1, "a"], "[1]", "expected int, got str"),
        (dict, [], "", "expected dict, got list"),
        (dict[str, int], {"a": 1, "b c": "x"}, "['b c']", "expected int, got str"),
        (dict[Literal["a"], int], {"b": 1}, ".b", "expected 'a', got str"),
        (int | str, [], "", "expected int | str, got list"),
        (Item | None, {"price": "x"}, ".price", "expected float, got str"),
        (Item | None, 1, "", "expected Item | None, got int"),
        (
            int | list[Item],
            [{"price": 1}, {}],
            "[1].price",
            "is missing, Item needs it",
        ),
        (Item, [], "", "expected Item, got list"),
        (Item, {}, ".price", "is missing, Item needs it"),
        (Item, {"price": 1, "count": 1.5}, ".count", "expected int, got float"),
        (Checked, {"total": 1}, ".factor", "is missing, Checked needs it"),
        (
            Checked,
            {"total": -1, "factor": 1},
            "",
            "Checked refused it: total must be 0 or more",
        ),
        (
            list[Checked],
            [{"total": -1, "factor": 1}],
            "[0]",
            "Checked refused it: total must be 0 or more",
        ),
        (
            Page[Item],
            {"items": [{"price": 1}], "next": {"items": [{}]}},
            ".next.items[0].price",
            "is missing, Item needs it",
        ),
        (Orders, {"items": [1]}, ".items[0]", "expected Item, got int"),
        (
            Tree,
            {"children": [{"children": [1]}]},
            ".children[0].children[0]",
            "expected Tree, got int",
        ),
        (Options, {"label": "a"}, ".depth", "is missing, Options needs it"),
        (Options, {"depth": 1, "label": 2}, ".label", "expected str, got int"),
        (Options, [], "", "expected Options, got list"),
        (Loose, {}, ".depth", "is missing, Loose needs it"),
        (Cell[Item], {"value": 1}, ".value", "expected Item, got int"),
        (N, "a", "", "expected int, got str"),
        (Pair[int], ["a", 1], "[0]", "expected int, got str"),
        (
            Mixed,
            {"models": [{"price": 1}, {"price": "x"}]},
            ".models[1].price",
            "Input should be a valid number, unable to parse string as a number, got str",
        ),
        (
            Mixed,
            {"models": [], "struct": {"price": "x"}},
            ".struct.price",
            "Expected `float`, got `str`",
        ),
        (
            Mixed,
            {"models": [{"price": "\ud800"}]},
            ".models",
            "JSON refused it: body[0].price: lone surrogate '\\ud800' cannot be sent as UTF-8",
        ),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_named_with_its_place(
    annotation: object, value: object, at: str, what: str
) -> None:
    """The innermost place, and the type of what is there."""
    with pytest.raises(MismatchError) as caught:
        make_shape(annotation)(value)

    assert (caught.value.at, caught.value.what) == (at, what)
    assert caught.value.__cause__ is not None or " refused it: " not in what


SUPPORTED = "supported are JSON's own types"


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (bytes, f"cannot decode a body into bytes: {SUPPORTED}"),
        (list[bytes], f"cannot decode a body into bytes: {SUPPORTED}"),
        (Odd, f"cannot decode a body into bytes: {SUPPORTED}"),
        (
            list[dict[str, complex | None]],
            f"cannot decode a body into complex: {SUPPORTED}",
        ),
        (Page[complex], f"cannot decode a body into complex: {SUPPORTED}"),
        (Point, f"cannot decode a body into Point: {SUPPORTED}"),
        (abc.Callable, f"cannot decode a body into Callable: {SUPPORTED}"),
        (type[int], f"cannot decode a body into type[int]: {SUPPORTED}"),
        ("Item", f"cannot decode a body into 'Item': {SUPPORTED}"),
        ([int], f"cannot decode a body into [<class 'int'>]: {SUPPORTED}"),
        (Item(1.0), f"cannot decode a body into Item(price=1.0, count=1): {SUPPORTED}"),
        (
            dict[int, str],
            "cannot decode a body into dict[int, str]: keys in JSON are strings",
        ),
        (
            dict[UserId, str],
            "cannot decode a body into dict[tests.test_shape.UserId, str]: keys",
        ),
        (
            list[Unknown],
            "annotation 'Missing' of 'what' in Unknown cannot be resolved: name 'Missing'",
        ),
    ],
)
def test_what_bodies_cannot_be_read_into_is_refused_at_once(
    annotation: object, text: str
) -> None:
    """When the handler is registered, not with the first message."""
    with pytest.raises(HandlerSignatureError) as caught:
        make_shape(annotation)

    assert str(caught.value).startswith(text)


def test_an_alias_may_contain_itself() -> None:
    """`type Json = …` does."""

    class TypeAliasType:  # what `type Tree = int | list[Tree]` makes from Python 3.12 on
        @cached_property
        def __value__(self) -> object:
            return int | list[tree]

        __type_params__ = ()

    tree = TypeAliasType()
    shape = make_shape(tree)

    assert shape([1, [2, [3]]]) == [1, [2, [3]]]
    with pytest.raises(MismatchError) as caught:
        shape([1, [2, ["x"]]])
    assert caught.value.at == "[1][1][0]"


def test_a_class_of_a_running_function_may_name_its_neighbours() -> None:
    """A test, or a factory, makes its types where it needs them."""

    @dataclass
    class Leaf:
        size: int

    @dataclass
    class Branch:
        leaves: list[Leaf]

    assert make_shape(Branch)({"leaves": [{"size": 1}]}) == Branch([Leaf(1)])


def test_defaults_are_made_anew_for_each() -> None:
    """A factory is called by the dataclass itself."""

    @dataclass
    class Basket:
        items: list[int] = field(default_factory=list)

    shape = make_shape(Basket)

    assert shape({}).items is not shape({}).items


def test_each_part_is_made_once() -> None:
    """Not tried and thrown away."""
    made = []

    @dataclass
    class Part:
        number: int

        def __post_init__(self) -> None:
            made.append(self.number)

    @dataclass
    class Whole:
        parts: list[Part | None]
        other: dict[str, Part]

    make_shape(Whole)(
        {"parts": [{"number": 1}, {"number": 2}], "other": {"a": {"number": 3}}}
    )

    assert made == [1, 2, 3]


ITEMS = st.builds(
    Item, price=st.floats(allow_nan=False, allow_infinity=False), count=st.integers()
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "id": st.uuids(),
    "items": st.lists(ITEMS, max_size=3),
    "user": st.integers(),
    "at": st.datetimes(timezones=st.just(UTC)).map(lambda at: at.replace(fold=0)),
    "total": st.none() | st.decimals(allow_nan=False, allow_infinity=False),
    "state": st.sampled_from(["new", "paid"]),
    "tags": st.lists(TEXT, max_size=2).map(tuple),
    "notes": st.dictionaries(TEXT, TEXT | st.integers(), max_size=3),
    "where": st.none() | st.tuples(st.just(1.5), st.just(-0.0)),
}
ORDERS = st.builds(Order, **PARTS, parent=st.none() | st.builds(Order, **PARTS))


@given(ORDERS)
def test_what_is_sent_comes_back(order: Order) -> None:
    """A dataclass with fields of every kind, equal to the last digit."""
    converted = make_shape(Order)(load(dump(order)))

    assert converted == order
    assert repr(converted) == repr(order)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(TEXT | st.sampled_from(["id", "items", "price"]), inner)
    ),
)


@given(JSON)
@pytest.mark.parametrize(
    "annotation",
    [Order, Mixed, Options, dict[UUID, set[Any]], Tree | tuple[Item, ...]],
    ids=str,
)
def test_any_json_fits_or_is_a_mismatch(annotation: object, value: object) -> None:
    """Nothing else is raised."""
    shape = make_shape(annotation)

    try:
        shape(value)
    except MismatchError as error:
        assert error.what  # noqa: PT017 -- one of the two is what is claimed
