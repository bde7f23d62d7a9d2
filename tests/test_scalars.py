from __future__ import annotations

import enum
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq._json import MismatchError, dump, load
from aioredismq._scalars import scalar_shape


class Colour(enum.Enum):
    """Members of several types, equal and not the same."""

    RED = "red"
    ONE = 1
    TRUE = "true"
    HALF = 0.5
    NOTHING = None
    CREAM = Decimal("1.50")
    PAIR = (1, 2)
    ODD = object()

    @classmethod
    def _missing_(cls, value: object) -> Colour | None:
        return cls.RED if value == "vermilion" else None


class Level(enum.IntEnum):
    """Members that are numbers."""

    LOW = 0
    HIGH = 1


class Word(str, enum.Enum):  # noqa: UP042 -- the old way is in use
    """Members that are strings."""

    YES = "yes"


class Right(enum.Flag):
    """Members that combine."""

    READ = 1
    WRITE = 2


EAST = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("annotation", "value", "result"),
    [
        (Any, {"a": [1]}, {"a": [1]}),
        (object, None, None),
        (type(None), None, None),
        (bool, True, True),
        (int, 2**70, 2**70),
        (float, 1, 1.0),
        (float, 1.5, 1.5),
        (str, "", ""),
        (datetime, "2024-02-29T12:00:00Z", datetime(2024, 2, 29, 12, tzinfo=UTC)),
        (
            datetime,
            "2024-02-29 12:00:00.5+01:00",
            datetime(2024, 2, 29, 12, 0, 0, 500_000, EAST),
        ),
        (date, "2024-02-29", date(2024, 2, 29)),
        (time, "12:30", time(12, 30)),
        (UUID, "00000000-0000-0000-0000-000000000001", UUID(int=1)),
        (Decimal, "9.90", Decimal("9.90")),
        (Decimal, 9.9, Decimal("9.9")),
        (Decimal, 10, Decimal(10)),
        (Decimal, Decimal("0.10"), Decimal("0.10")),
        (Literal["a", 1], 1, 1),
        (Literal[True, 1], True, True),
        (Literal[Colour.RED, "b"], "red", Colour.RED),
        (Colour, "red", Colour.RED),
        (Colour, 1, Colour.ONE),
        (Colour, "true", Colour.TRUE),
        (Colour, 0.5, Colour.HALF),
        (Colour, None, Colour.NOTHING),
        (Colour, "1.50", Colour.CREAM),
        (Colour, "vermilion", Colour.RED),
        (Level, 1, Level.HIGH),
        (Word, "yes", Word.YES),
        (Right, 3, Right.READ | Right.WRITE),
    ],
    ids=repr,
)
def test_a_value_becomes_what_the_annotation_says(
    annotation: object, value: object, result: object
) -> None:
    """The type too."""
    shape = scalar_shape(annotation)
    assert shape is not None

    converted = shape(value)

    assert converted == result
    assert type(converted) is type(result)


@pytest.mark.parametrize(
    ("annotation", "value", "what"),
    [
        (type(None), 0, "expected None, got int"),
        (bool, 1, "expected bool, got int"),
        (bool, "true", "expected bool, got str"),
        (int, True, "expected int, got bool"),
        (int, 1.0, "expected int, got float"),
        (int, "1", "expected int, got str"),
        (float, False, "expected float, got bool"),
        (float, "1", "expected float, got str"),
        (float, 10**400, "float refused it: int too large to convert to float"),
        (str, 1, "expected str, got int"),
        (str, None, "expected str, got NoneType"),
        (datetime, 1, "expected datetime as str, got int"),
        (datetime, "noon", "datetime refused it: Invalid isoformat string: 'noon'"),
        (date, "2024-02-30", "date refused it: day is out of range for month"),
        (time, "25:00", "time refused it: hour must be in 0..23"),
        (UUID, "1", "UUID refused it: badly formed hexadecimal UUID string"),
        (UUID, 1, "expected UUID as str, got int"),
        (Decimal, True, "expected Decimal as str or number, got bool"),
        (Decimal, "NaN", "expected Decimal, got a str that is no finite number"),
        (Decimal, "ten", "expected Decimal, got a str that is no finite number"),
        (
            Decimal,
            Decimal("Infinity"),
            "expected Decimal, got a Decimal that is no finite number",
        ),
        (Literal["a", 1], True, "expected 'a' or 1, got bool"),
        (Literal["a", 1], 1.0, "expected 'a' or 1, got float"),
        (Literal["a", 1], "b", "expected 'a' or 1, got str"),
        (Literal["a", 1], ["a"], "expected 'a' or 1, got list"),
        (Colour, True, "expected a value of Colour, got bool"),
        (Colour, "blue", "Colour refused it: 'blue' is not a valid Colour"),
        (Colour, {}, "Colour refused it: {} is not a valid Colour"),
        (Right, 8, "Right refused it: <flag 'Right'> invalid value 8"),
        (Right, "READ", "Right refused it: 'READ' is not a valid Right"),
    ],
    ids=repr,
)
def test_anything_else_is_refused(annotation: object, value: object, what: str) -> None:
    """Equal is not the same: true is no 1, and 1.0 neither."""
    shape = scalar_shape(annotation)
    assert shape is not None

    with pytest.raises(MismatchError) as caught:
        shape(value)

    assert caught.value.what.startswith(what)
    assert caught.value.at == ""
    assert (caught.value.__cause__ is not None) is (" refused it: " in what)


@pytest.mark.parametrize(
    "annotation",
    [bytes, complex, list, list[int], int | None, "int", timedelta],
    ids=str,
)
def test_what_is_no_single_value_is_left_to_others(annotation: object) -> None:
    """Collections, unions, and what has no form in JSON."""
    assert scalar_shape(annotation) is None


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (float, st.floats(allow_nan=False, allow_infinity=False)),
        (datetime, st.datetimes(timezones=st.sampled_from([None, UTC, EAST]))),
        (date, st.dates()),
        (time, st.times()),
        (UUID, st.uuids()),
        (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
        (Word, st.sampled_from(Word)),
        (Level, st.sampled_from(Level)),
        (Right, st.integers(0, 3).map(Right)),
    ],
    ids=str,
)
def test_what_is_written_is_read(
    annotation: type, values: st.SearchStrategy[Any]
) -> None:
    """Each value comes back."""
    shape = scalar_shape(annotation)
    assert shape is not None

    @given(values)
    def check(value: object) -> None:
        converted = shape(load(dump(value)))

        assert converted == value
        assert type(converted) is annotation

    check()


@pytest.mark.parametrize(
    "annotation",
    [datetime, date, time, UUID, Decimal, Colour, Level, Right, float],
    ids=str,
)
def test_rubbish_is_converted_or_refused(annotation: type) -> None:
    """Nothing but a mismatch is raised, whatever the text."""
    shape = scalar_shape(annotation)
    assert shape is not None

    @given(st.text() | st.integers() | st.floats())
    def check(value: object) -> None:
        try:
            converted = shape(value)
        except MismatchError:
            return
        assert isinstance(converted, annotation)

    check()
