from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq import Failure
from aioredismq._history import (
    attempts_made,
    expires_at,
    handed_back,
    message_id,
    put_aside,
    still_dead,
    tried_again,
)
from aioredismq._message import Entry

# Flat fields as anybody may have written them, ours among them.
names = st.binary(max_size=8) | st.sampled_from(
    [b"body", b"content-type", b"mq-id", b"mq-attempt", b"mq-detail", b"mq-other"]
)
pairs = st.lists(st.tuples(names, st.binary(max_size=8)), max_size=6)
ids = st.from_regex(rb"[0-9]{1,13}-[0-9]{1,3}", fullmatch=True)


def flat(fields: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Write pairs as Redis delivers them."""
    return [part for pair in fields for part in pair]


def of_the_application(fields: list[bytes]) -> list[tuple[bytes, bytes]]:
    """List the pairs that are not this package's."""
    both = zip(fields[::2], fields[1::2], strict=True)
    return [(name, value) for name, value in both if not name.startswith(b"mq-")]


def ours(fields: list[bytes]) -> dict[bytes, bytes]:
    """List the reserved fields; there is one of each."""
    both = zip(fields[::2], fields[1::2], strict=True)
    found = [(name, value) for name, value in both if name.startswith(b"mq-")]
    assert len(dict(found)) == len(found)
    return dict(found)


def in_lane(fields: list[bytes]) -> Entry:
    """Deliver what was stored in the lane."""
    return Entry(b"999-9", fields, in_lane=True)


FAILURE = Failure("rejected", "no such order")


@given(entry_id=ids, fields=pairs)
def test_an_applications_fields_travel_as_they_are(
    entry_id: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    """In their order, repeated ones too, through every way off a consumer."""
    entry = Entry(entry_id, flat(fields), in_lane=False)
    mine = of_the_application(entry.fields)

    assert of_the_application(handed_back(entry)) == mine
    assert of_the_application(tried_again(entry, 1, "bad")) == mine
    assert of_the_application(put_aside(entry, 1, "group", FAILURE)) == mine


@given(
    entry_id=ids,
    steps=st.lists(st.sampled_from(["back", "again"]), min_size=1, max_size=8),
)
def test_a_message_keeps_its_id_and_counts_its_attempts(
    entry_id: bytes, steps: list[str]
) -> None:
    """However often it is handed back or tried again; only a failed attempt counts."""
    entry = Entry(entry_id, [b"body", b"1"], in_lane=False)
    failed = 0

    for step in steps:
        if step == "back":
            entry = in_lane(handed_back(entry))
        else:
            failed += 1
            entry = in_lane(tried_again(entry, attempts_made(entry) + 1, f"{failed}"))
        assert message_id(entry) == entry_id.decode()
        assert attempts_made(entry) == failed

    assert ours(entry.fields).get(b"mq-detail", b"0") == b"%d" % failed


def test_a_dead_letter_says_everything() -> None:
    """Which message, of which group, after how many attempts, and why."""
    with pytest.raises(ValueError, match="bad") as caught:
        raise ValueError("bad")
    failure = Failure("attempts", "bad", caught.value)
    entry = Entry(b"7-0", [b"body", b"1", b"trace", b"ab"], in_lane=False)

    fields = put_aside(entry, 5, "billing", failure)

    assert fields[:4] == entry.fields
    assert ours(fields) == {
        b"mq-id": b"7-0",
        b"mq-attempt": b"5",
        b"mq-group": b"billing",
        b"mq-reason": b"attempts",
        b"mq-detail": b"bad",
        b"mq-error-type": b"ValueError",
        b"mq-traceback": failure.traceback.encode(),
    }


def test_a_dead_letter_that_goes_back_says_all_it_said_and_since_when() -> None:
    """However often: its id tells that only until it is stored again."""
    letter = put_aside(
        Entry(b"7-0", [b"body", b"1"], in_lane=False), 5, "billing", FAILURE
    )

    once = still_dead(Entry(b"1700-3", letter, in_lane=False))
    twice = still_dead(Entry(b"1900-0", once, in_lane=False))

    assert twice == once == [*letter, b"mq-died", b"1700"]


def test_the_widest_letter_of_ours_goes_back_whole_and_a_wider_one_is_cut() -> None:
    """Somebody may have put one there by hand."""
    wide = [b"h%d" % (at // 2) for at in range(20_000)]
    entry = Entry(b"7-0", [*wide, b"body", b"1"], in_lane=False, crashes=2)
    error = ValueError("bad")
    letter = put_aside(entry, 5, "billing", Failure("attempts", "bad", error))

    assert still_dead(Entry(b"9-0", letter, in_lane=False))[:-2] == letter
    assert len(still_dead(Entry(b"9-0", wide, in_lane=False))) < 4100


def test_crashes_are_carried_on() -> None:
    """Those charged now, or those charged before: a hand-over must not wipe them out."""
    charged = Entry(b"7-0", [b"body", b"1"], in_lane=False, crashes=2)
    later = in_lane(handed_back(charged))

    for fields in (handed_back(charged), handed_back(later), tried_again(later, 1, "")):
        assert ours(fields)[b"mq-crashes"] == b"2"


def test_the_time_a_message_expires_is_carried_on() -> None:
    """Whatever becomes of it; most have none."""
    entry = Entry(b"7-0", [b"body", b"1", b"mq-expires", b"1700"], in_lane=False)

    for fields in (handed_back(entry), put_aside(entry, 1, "group", FAILURE)):
        assert ours(fields)[b"mq-expires"] == b"1700"
        assert expires_at(in_lane(fields)) == 1.7
    assert expires_at(Entry(b"7-0", [b"body", b"1"], in_lane=False)) is None


def test_a_delayed_message_keeps_its_id_and_when_it_was_produced() -> None:
    """It waited elsewhere, and is stored in the stream under another one."""
    given = [b"mq-id", b"ab12-3-0", b"mq-produced", b"1700"]
    entry = Entry(b"7-0", [b"body", b"1", *given], in_lane=False)
    again = in_lane(tried_again(entry, 1, ""))
    dead = put_aside(again, 1, "group", FAILURE)

    assert message_id(entry) == message_id(again) == "ab12-3-0"
    assert ours(again.fields)[b"mq-produced"] == ours(dead)[b"mq-produced"] == b"1700"


def test_what_there_is_nothing_to_say_of_is_left_out() -> None:
    """No empty fields."""
    entry = Entry(b"7-0", [b"body", b"1"], in_lane=False)

    assert ours(put_aside(entry, 1, "billing", Failure("rejected", ""))) == {
        b"mq-id": b"7-0",
        b"mq-attempt": b"1",
        b"mq-group": b"billing",
        b"mq-reason": b"rejected",
    }
    assert ours(tried_again(entry, 1, "")) == {b"mq-id": b"7-0", b"mq-attempt": b"1"}


def test_the_words_of_the_last_failure_travel_with_what_is_handed_back() -> None:
    """It is not known to be mended."""
    failed = in_lane(
        tried_again(Entry(b"7-0", [b"body", b"1"], in_lane=False), 2, "bad")
    )

    assert ours(handed_back(failed))[b"mq-detail"] == b"bad"


def test_words_redis_cannot_store_as_text_are_shown_with_backslashes() -> None:
    """A lone surrogate in an error's words must not keep a message from its dead letter."""
    entry = Entry(b"7-0", [b"body", b"1"], in_lane=False)

    fields = put_aside(entry, 1, "billing", Failure("rejected", "word\ud800"))

    assert ours(fields)[b"mq-detail"] == rb"word\ud800"


def test_attempts_of_the_streams_own_entries_are_none() -> None:
    """A header of ours in one is somebody else's words."""
    entry = Entry(b"7-0", [b"body", b"1", b"mq-attempt", b"4"], in_lane=False)

    assert attempts_made(entry) == 0


@pytest.mark.parametrize(
    "text", [b"", b"-1", b"many", b"1.5", "٣".encode(), b"\xff", b"9" * 5000]
)
def test_attempts_that_are_no_number_are_none(text: bytes) -> None:
    """Whoever has written them into the lane."""
    assert attempts_made(in_lane([b"body", b"1", b"mq-attempt", text])) == 0


def test_a_lanes_entry_without_an_id_has_its_own() -> None:
    """Somebody has written it there by hand."""
    assert message_id(in_lane([b"body", b"1"])) == "999-9"


def test_an_id_that_is_no_text_is_shown_with_backslashes() -> None:
    """It stays the same from then on."""
    entry = in_lane([b"body", b"1", b"mq-id", b"\xff"])
    again = in_lane(tried_again(entry, 1, ""))

    assert message_id(entry) == message_id(again) == r"\xff"


def test_an_entry_that_is_too_wide_is_cut() -> None:
    """No script could pass it on; its body stays, wherever it stands, and what is ours."""
    wide = [part for at in range(9000) for part in (b"%d" % at, b"x")]
    entry = in_lane([*wide, b"body", b"1", b"body", b"2"])

    fields = put_aside(entry, 1, "group", FAILURE)

    assert len(fields) < 5000
    assert fields[:4000] == wide[:4000]
    assert fields[4000:4002] == [b"body", b"1"]
    assert ours(fields)[b"mq-reason"] == b"rejected"


@given(fields=st.lists(st.binary(max_size=8), max_size=7))
def test_no_entry_is_beyond_reading(fields: list[bytes]) -> None:
    """Whatever it holds, a name without a value too."""
    entry = in_lane(fields)

    for stored in (handed_back(entry), put_aside(entry, 1, "group", FAILURE)):
        assert len(stored) % 2 == 0
        assert b"mq-id" in stored[::2]
