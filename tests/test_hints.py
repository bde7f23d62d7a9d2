from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    NewType,
    NotRequired,
    Protocol,
    Required,
    TypedDict,
    TypeVar,
)

import pytest
import typing_extensions
from typing_extensions import ReadOnly, TypeAliasType

from aioredismq import HandlerSignatureError
from aioredismq._hints import (
    bare,
    describe,
    fields_of,
    is_alias,
    is_required,
    members,
    resolve,
)

T = TypeVar("T")
U = TypeVar("U")
UserId = NewType("UserId", int)
Many = TypeAliasType("Many", list[T], type_params=(T,))
Name = TypeAliasType("Name", Annotated[str, "a name"])


@dataclasses.dataclass
class Item:
    """A class without anything generic."""

    price: float
    next: Item | None = None


@dataclasses.dataclass
class Pair(Generic[T, U]):
    """A generic class."""

    first: T
    second: list[U]
    count: ClassVar[int] = 0
    seed: dataclasses.InitVar[T | None] = None


@dataclasses.dataclass
class Swapped(Pair[U, T], Generic[T, U]):
    """The same variables in another order than its base has them."""

    third: T | None = None


class Sized(Protocol[T]):
    """A base without fields of its own."""


@dataclasses.dataclass
class Box(Sized[U], Generic[U, T]):
    """A class with such a base."""

    inside: T


@dataclasses.dataclass
class Bound(Swapped[int, str]):
    """Subscripted in the list of bases."""


def handler(body: Item) -> None:
    """Stand for a handler."""


# Resolving.


def test_strings_are_evaluated_where_they_stand() -> None:
    """In the names of the module, whole or in part."""
    found = resolve(
        {"a": "list[Item]", "b": list["Item"], "c": int, "d": "None"},
        handler,
        globals(),
    )

    assert found == {"a": list[Item], "b": list[Item], "c": int, "d": type(None)}


def test_what_is_annotated_keeps_its_extras() -> None:
    """Others may want them."""
    assert resolve({"a": "Annotated[int, 1]"}, handler, globals()) == {
        "a": Annotated[int, 1]
    }


def test_names_of_a_function_still_running_count() -> None:
    """A handler and its types may be made inside a test or a factory."""

    class Local:
        pass

    def inner() -> None: ...

    assert resolve({"a": "list[Local]"}, inner, globals()) == {"a": list[Local]}


def test_names_of_a_function_of_the_same_name_elsewhere_do_not_count() -> None:
    """The frame must be of the same module too."""
    local = int

    def inner() -> None: ...

    inner.__module__ = "elsewhere"

    with pytest.raises(HandlerSignatureError):
        resolve({"a": "local"}, inner, {})
    assert local is int


def test_type_parameters_of_a_function_or_class_are_known() -> None:
    """`def handler[V](body: list[V])`, from Python 3.12 on."""
    variable = TypeVar("V")

    def inner() -> None: ...

    inner.__type_params__ = (variable,)

    assert resolve({"a": "list[V]"}, inner, {}) == {"a": list[variable]}


def test_a_class_can_name_itself_when_its_function_has_ended() -> None:
    """A recursive type made by a factory."""

    def make() -> type:
        @dataclasses.dataclass
        class Tree:
            children: list[Tree]

        return Tree

    tree = make()

    assert fields_of(tree) == {"children": list[tree]}


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ("Missing", "name 'Missing' is not defined"),
        ("list[", "Forward reference must be an expression"),
        ("typing.Missing", "module 'typing' has no attribute 'Missing'"),
        ("1 / 0", "division by zero"),
    ],
)
def test_what_cannot_be_resolved_is_named(annotation: str, reason: str) -> None:
    """With the parameter and the function it stands at, and the mend."""
    with pytest.raises(HandlerSignatureError) as caught:
        resolve({"body": annotation}, handler, globals())

    start = (
        f"annotation {annotation!r} of 'body' in handler cannot be resolved: {reason}"
    )
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith("not under `if TYPE_CHECKING`)")
    assert isinstance(caught.value.__cause__, Exception)


def test_annotations_that_fail_only_when_asked_for_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From Python 3.14 on, a class evaluates its own only then."""

    def get_annotations(_: object) -> None:
        raise NameError("name 'Missing' is not defined")

    monkeypatch.setattr(inspect, "get_annotations", get_annotations)

    with pytest.raises(HandlerSignatureError) as caught:
        fields_of(Item)

    text = "an annotation in Item cannot be resolved: name 'Missing' is not defined"
    assert str(caught.value) == text
    assert isinstance(caught.value.__cause__, NameError)


# Fields of classes.


@pytest.mark.parametrize(
    ("annotation", "fields"),
    [
        (Item, {"price": float, "next": Item | None}),
        (
            Pair[int, str],
            {
                "first": int,
                "second": list[str],
                "count": ClassVar[int],
                "seed": int | None,
            },
        ),
        (
            Swapped[int, str],
            {
                "first": str,
                "second": list[int],
                "count": ClassVar[int],
                "seed": str | None,
                "third": int | None,
            },
        ),
        (
            Bound,
            {
                "first": str,
                "second": list[int],
                "count": ClassVar[int],
                "seed": str | None,
                "third": int | None,
            },
        ),
        (
            Swapped,
            {
                "first": U,
                "second": list[T],
                "count": ClassVar[int],
                "seed": U | None,
                "third": T | None,
            },
        ),
        (Box[int, str], {"inside": str}),
        (object, {}),
        (list[int], {}),
        (None, {}),
    ],
    ids=str,
)
def test_fields_have_what_the_class_was_subscripted_with(
    annotation: object, fields: dict[str, object]
) -> None:
    """Through the bases, whatever their variables are called."""
    assert fields_of(annotation) == fields
    assert list(fields_of(annotation)) == list(fields)


@pytest.mark.parametrize("module", [typing, typing_extensions])
def test_keys_of_a_typed_dict_keep_what_marks_them(module: Any) -> None:
    """Both makes of `TypedDict`."""
    base = module.TypedDict("base", {"a": int, "b": "NotRequired[str]"})

    assert fields_of(base) == {"a": int, "b": NotRequired[str]}


class Options(TypedDict, total=False):
    """Keys that may be missing, but one."""

    a: Required[int]


class More(Options):
    """Keys of two classes."""

    b: str


def test_keys_of_a_typed_dict_are_inherited() -> None:
    """Those of the base come first."""
    assert fields_of(More) == {"a": Required[int], "b": str}


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, None),
        (Required[int], True),
        (NotRequired[int], False),
        (ReadOnly[NotRequired[int]], False),
        (Annotated[Required[int], 1], True),
        (NotRequired[Annotated[int, 1]], False),
        (ReadOnly[int], None),
    ],
    ids=str,
)
def test_a_mark_says_whether_a_key_must_be_there(
    hint: object, expected: bool | None
) -> None:
    """Without one, the class does."""
    for otherwise in (True, False):
        wanted = otherwise if expected is None else expected
        assert is_required(hint, otherwise=otherwise) is wanted


# Looking through.


@pytest.mark.parametrize(
    ("annotation", "inside"),
    [
        (int, int),
        (None, None),
        (Annotated[int, 1], int),
        (Final[Annotated[int, 1]], int),
        (ClassVar[int], int),
        (NotRequired[int], int),
        (UserId, int),
        (NewType("Inner", UserId), int),
        (Name, str),
        (Many[int], list[int]),
        (Many, list[T]),
        (list[UserId], list[UserId]),
    ],
    ids=str,
)
def test_wrappers_are_looked_through(annotation: object, inside: object) -> None:
    """To what the value is, not to what is inside it."""
    assert bare(annotation) == inside


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [(Name, True), (Many[int], True), (int, False), (list[int], False)],
)
def test_an_alias_is_known(annotation: object, expected: bool) -> None:
    """Subscripted or not."""
    assert is_alias(annotation) is expected


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int | None, (int, type(None))),
        (typing.Union[int, str], (int, str)),  # noqa: UP007 -- the other make of union
        (TypeAliasType("A", int | str) | bytes, (int, str, bytes)),
        (Annotated[int, 1] | str, (int, str)),
        (int, ()),
        (list[int | str], ()),
    ],
    ids=str,
)
def test_the_members_of_a_union_are_found(
    annotation: object, expected: tuple[object, ...]
) -> None:
    """Those of a union inside it too."""
    assert members(annotation) == expected


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (None, "None"),
        (type(None), "None"),
        (int | None, "int | None"),
        (typing.Optional[int], "int | None"),  # noqa: UP045 -- the other make of union
        (list[int], "list[int]"),
        (dict[str, Any], "dict[str, Any]"),
        (Item, "Item"),
        (handler, "handler"),
        ("Item", "'Item'"),
        (Any, "Any"),
        (5, "5"),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_an_annotation_is_written_for_people(annotation: object, text: str) -> None:
    """As they would write it."""
    assert describe(annotation) == text


def test_a_local_class_is_written_without_where_it_was_made() -> None:
    """`test_x.<locals>.Order` says nothing more."""

    class Order:
        pass

    assert describe(Order) == "Order"
