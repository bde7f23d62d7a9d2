from __future__ import annotations

from aioredismq._clock import elapsed
from aioredismq._held import Held
from aioredismq._message import Entry


def entries(*ids: bytes, in_lane: bool = False) -> list[Entry]:
    """Make entries of one source."""
    return [Entry(entry_id, [], in_lane=in_lane) for entry_id in ids]


def test_what_was_read_is_held_until_it_is_settled() -> None:
    """An id is held from its read to the answer of what settled it."""
    held = Held()

    held.add(entries(b"1-0", b"2-0"))
    held.drop([b"1-0"], in_lane=False)

    assert not held.has(b"1-0", in_lane=False)
    assert held.has(b"2-0", in_lane=False)
    assert len(held) == 1


def test_the_stream_and_the_lane_are_told_apart() -> None:
    """Both number their entries by the same clock: one id may mean two messages."""
    held = Held()
    held.add(entries(b"1-0"))
    held.add(entries(b"1-0", in_lane=True))

    held.drop([b"1-0"], in_lane=True)

    assert held.has(b"1-0", in_lane=False)
    assert not held.has(b"1-0", in_lane=True)
    assert len(held) == 1


def test_reading_an_entry_again_holds_it_once() -> None:
    """What a lost reply brought is found again among the own pending entries."""
    held = Held()

    held.add(entries(b"1-0"))
    held.add(entries(b"1-0"))
    held.add([])

    assert len(held) == 1


def test_a_lease_is_as_old_as_its_last_renewal() -> None:
    """Only of what is still held: an answer may come after the settlement."""
    held = Held()
    before = elapsed()
    held.add(entries(b"1-0", b"2-0"))
    read_at = held.renewed_at(b"2-0", in_lane=False)

    held.renewed([b"1-0", b"9-0"], before + 100, in_lane=False)

    assert held.renewed_at(b"1-0", in_lane=False) == before + 100
    assert held.renewed_at(b"2-0", in_lane=False) == read_at
    assert read_at is not None
    assert read_at >= before
    assert held.renewed_at(b"9-0", in_lane=False) is None
    assert held.renewed_at(b"1-0", in_lane=True) is None


def test_held_ids_are_listed_in_the_order_of_the_stream() -> None:
    """By time and number, not by letters: a range of the server's covers them."""
    held = Held()

    held.add(entries(b"10-0", b"9-11", b"9-2"))
    held.add(entries(b"1-0", in_lane=True))

    assert held.ids(in_lane=False) == [b"9-2", b"9-11", b"10-0"]
    assert held.ids(in_lane=True) == [b"1-0"]


def test_dropping_what_is_not_held_changes_nothing() -> None:
    """An entry may be settled twice, by hand and by a resend."""
    held = Held()

    held.drop([b"1-0"], in_lane=False)

    assert len(held) == 0


def test_what_is_settled_during_a_look_was_held() -> None:
    """Whoever looks at what is pending may read of it later than it was settled."""
    held = Held()
    held.add(entries(b"1-0", b"2-0"))

    with held.looking(in_lane=False) as known, held.looking(in_lane=True) as in_lane:
        held.add(entries(b"3-0"))
        held.drop([b"1-0", b"3-0"], in_lane=False)

        assert [known(b"%d-0" % n) for n in (1, 2, 3, 4)] == [True, True, True, False]
        assert not in_lane(b"1-0")
    with held.looking(in_lane=False) as known:
        assert [known(b"%d-0" % n) for n in (1, 2)] == [False, True]


def test_what_comes_again_is_told_apart_from_what_is_new() -> None:
    """It was lost and is this consumer's again: its handler still runs."""
    held = Held()
    first, second, third = entries(b"1-0", b"2-0", b"3-0")
    assert held.add([first, second]) == [first, second]
    assert held.lose(b"1-0", in_lane=False)
    assert not held.lose(b"1-0", in_lane=False)
    assert held.renewed_at(b"1-0", in_lane=False) is None

    assert held.add([first, third]) == [third]

    assert held.renewed_at(b"1-0", in_lane=False) is not None
    held.lose(b"1-0", in_lane=False)
    held.drop([b"1-0"], in_lane=False)
    assert held.add([first]) == [first]
    assert held.renewed_at(b"1-0", in_lane=False) is not None


def test_what_was_asked_for_long_ago_shortens_what_is_sound() -> None:
    """It may have been handed out at once; what was asked for later lengthens nothing."""
    held = Held(lease=30.0)
    held.sound_until = 100.0

    held.note_asked(65.0)
    assert held.sound_until == 95.0
    held.note_asked(75.0)
    assert held.sound_until == 95.0
