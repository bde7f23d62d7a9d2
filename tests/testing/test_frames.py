from __future__ import annotations

from itertools import pairwise

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq.testing._frames import Frames

VALUES = {
    "simple": b"+OK\r\n",
    "error": b"-ERR no\r\n",
    "integer": b":12\r\n",
    "bulk": b"$5\r\na\r\nbc\r\n",
    "empty bulk": b"$0\r\n\r\n",
    "no bulk": b"$-1\r\n",
    "array": b"*2\r\n$1\r\na\r\n:1\r\n",
    "empty array": b"*0\r\n",
    "no array": b"*-1\r\n",
    "nested": b"*2\r\n*2\r\n:1\r\n*0\r\n*1\r\n$2\r\n\r\n\r\n",
    "map": b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
    "empty map": b"%0\r\n",
    "set": b"~1\r\n:1\r\n",
    "push": b">2\r\n+message\r\n$1\r\na\r\n",
    "attribute": b"|1\r\n+ttl\r\n:3\r\n*1\r\n:1\r\n",
    "null": b"_\r\n",
    "double": b",1.5\r\n",
    "boolean": b"#t\r\n",
    "big number": b"(123456789012345678901234567890\r\n",
    "verbatim": b"=7\r\ntxt:abc\r\n",
    "blob error": b"!5\r\nERR x\r\n",
    "inline command": b"PING\r\n",
    "an inline command without a carriage return": b"PING\n",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_ends_where_the_next_one_begins(value: bytes) -> None:
    """Every kind of both protocol versions is counted as one."""
    frames = Frames()

    assert frames.ends(value + b"+OK\r\n") == [len(value), len(value) + 5]


@given(st.lists(st.sampled_from(list(VALUES.values())), max_size=8), st.data())
def test_pieces_make_no_difference(values: list[bytes], draw: st.DataObject) -> None:
    """However the network cuts the bytes, the same values end at the same places."""
    data = b"".join(values)
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=6))
    places = [0, *sorted(cuts), len(data)]
    frames = Frames()

    found = [
        start + end
        for start, stop in pairwise(places)
        for end in frames.ends(data[start:stop])
    ]

    lengths = [len(value) for value in values]
    assert found == [sum(lengths[: at + 1]) for at in range(len(values))]


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5))
def test_a_command_is_one_value(parts: list[bytes]) -> None:
    """Whatever its arguments are, line ends and protocol signs among them."""
    command = hiredis.pack_command(tuple(parts))  # type: ignore[arg-type]

    assert Frames().ends(command) == [len(command)]


def test_an_empty_line_is_nothing() -> None:
    """Redis, too, overlooks it between commands."""
    assert Frames().ends(b"\r\n\r\nPING\r\n") == [10]


@given(st.binary(max_size=200))
def test_what_is_not_the_protocol_does_no_harm(data: bytes) -> None:
    """Encrypted bytes, or a web page, pass too."""
    ends = Frames().ends(data)

    assert ends == sorted(ends)
