from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from aioredismq import CommandRefusedError
from aioredismq import _member as room_of_member
from aioredismq._member import Member, Move
from aioredismq._message import Entry
from tests.looking import NOTHING, Left, dead_letters, deliver, left, opened_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aioredismq._member import Recovered, Where
    from aioredismq._stream import Stream
    from aioredismq.testing import RedisServer

GROUP = "billing"
ONE, OTHER = "one", "other"
VISIBILITY = 10.0
# Until when a look may claim: a moment of the server's clock that does not come.
FAR_AWAY = 1e11
# What marks a suspect: its delivery count, plus its crashes.
MARK, UNSURE = 1000, 500


async def look(
    member: Member,
    *,
    take: bool = True,
    running: Entry | None = None,
    takes_any: bool = False,
    visibility_timeout: float = VISIBILITY,
) -> Recovered:
    """Look once for what is abandoned, and take it over without a hurry."""
    return await member.recover(
        visibility_timeout=visibility_timeout,
        take_until=FAR_AWAY if take else None,
        running=running,
        takes_any=takes_any,
    )


class Belonging:
    """Two members of one group, and how a test looks at what they hold."""

    def __init__(self, stream: Stream, client: Redis) -> None:
        """Both names appear in Redis with their first delivery."""
        self.stream = stream
        self.client = client
        self.one = Member(stream, GROUP, ONE)
        self.other = Member(stream, GROUP, OTHER)

    def key(self, *, in_lane: bool) -> str:
        """Name the stream, or the group's lane."""
        keys = self.stream.keys
        return keys.lane(GROUP) if in_lane else keys.stream

    async def deliver(self, consumer: str, count: int = 1) -> list[Entry]:
        """Store messages, and read them as this consumer."""
        return await deliver(self.stream, self.client, GROUP, consumer, *[b"x"] * count)

    async def hand_back(self, *entries: Entry) -> list[Entry]:
        """Move what the other holds to the lane, and let the other take it from there."""
        moves = [Move(one, "lane", one.fields) for one in entries]
        assert await self.other.move(moves) == [True] * len(entries)
        return (await self.other.take(len(entries))).entries

    async def age(self, *entries: Entry, seconds: float = 60.0) -> None:
        """Let entries look as if nobody had renewed them for a while, owners unchanged."""
        for entry in entries:
            key = self.key(in_lane=entry.in_lane)
            [about] = await self._about(entry)
            await self.client.xclaim(
                key, GROUP, about["consumer"], 0, [entry.id],
                idle=int(seconds * 1000), justid=True,
            )  # fmt: skip

    async def _about(self, entry: Entry) -> list[dict[str, object]]:
        key = self.key(in_lane=entry.in_lane)
        found: list[dict[str, object]] = await self.client.xpending_range(
            key, GROUP, entry.id, entry.id, 1
        )
        return found

    async def owner(self, entry: Entry) -> bytes | None:
        """Say who holds an entry; None for nobody."""
        for about in await self._about(entry):
            assert isinstance(about["consumer"], bytes)
            return about["consumer"]
        return None

    async def count(self, entry: Entry) -> int:
        """Say how often an entry was delivered, or how it is marked."""
        [about] = await self._about(entry)
        assert isinstance(about["times_delivered"], int)
        return about["times_delivered"]

    async def idle(self, entry: Entry) -> float:
        """Say for how many seconds an entry was not renewed."""
        [about] = await self._about(entry)
        assert isinstance(about["time_since_delivered"], int)
        return about["time_since_delivered"] / 1000

    async def recover(
        self, *, take: bool = True, running: Entry | None = None
    ) -> Recovered:
        """Look once as the one."""
        return await look(self.one, take=take, running=running)

    async def crash(self, entry: Entry) -> Entry:
        """Let the holder of a suspect vanish, and take it over once more."""
        await self.age(entry)
        member = self.other if await self.owner(entry) == b"one" else self.one
        found = await look(member)
        if found.entry is None:
            found = await look(member)  # the first went on behind it
        assert found.entry is not None
        assert found.entry.id == entry.id
        return found.entry

    async def agreed(self, name: str) -> bytes | None:
        """Read one of the things all users of the queue share."""
        value: bytes | None = await self.client.hget(self.stream.keys.queue, name)
        return value


@asynccontextmanager
async def belonging(url: str, name: str, client: Redis) -> AsyncIterator[Belonging]:
    """Set up two members of a fresh queue."""
    async with opened_stream(url, name, GROUP) as stream:
        yield Belonging(stream, client)


# Reading.


@pytest.mark.parametrize("reply", [None, [], {}])
def test_a_read_that_timed_out_has_brought_nothing(reply: object) -> None:
    """RESP2 says nil, RESP3 null."""
    assert Member.read_entries(reply) == []


@pytest.mark.parametrize("is_map", [False, True])
def test_entries_are_taken_out_of_either_protocols_reply(is_map: bool) -> None:
    """RESP2 sends pairs, RESP3 a map."""
    rows = [[b"1-0", [b"body", b"1"]], [b"2-0", [b"body", b"2"]]]

    entries = Member.read_entries({b"s": rows} if is_map else [[b"s", rows]])

    assert [(one.id, one.fields, one.in_lane) for one in entries] == [
        (b"1-0", [b"body", b"1"], False),
        (b"2-0", [b"body", b"2"], False),
    ]


async def test_taking_says_when_the_next_is_due_and_what_time_it_is(
    url: str, name: str, client: Redis
) -> None:
    """So that nobody has to ask again before; by the server's clock."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(ONE)
        await them.one.move([Move(entry, "later", entry.fields, 30.0)])

        taken = await them.one.take(10)

        seconds, _ = await client.time()
        assert (taken.entries, taken.more) == ([], False)
        assert taken.next_due is not None
        assert 20 < taken.next_due <= 30
        assert abs(taken.server_time - seconds) < 10


async def test_taking_with_nothing_waiting_makes_no_key(
    url: str, name: str, client: Redis
) -> None:
    """A queue in which nothing fails has no lane."""
    async with belonging(url, name, client) as them:
        taken = await them.one.take(10)

        assert (taken.entries, taken.next_due, taken.more) == ([], None, False)
        assert not await client.exists(*them.stream.keys.of_lane(GROUP))


async def test_more_says_that_the_lane_holds_more(
    url: str, name: str, client: Redis
) -> None:
    """Asked again, the rest comes, each to one taker."""
    async with belonging(url, name, client) as them:
        entries = await them.deliver(ONE, 3)
        await them.one.move([Move(one, "lane", one.fields) for one in entries])

        first = await them.one.take(2)
        second = await them.other.take(2)

        assert [len(first.entries), first.more] == [2, True]
        assert [len(second.entries), second.more] == [1, False]


async def test_looking_at_ones_own_raises_no_delivery_count(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page; what is known is left out, and what was deleted is cleaned out."""
    monkeypatch.setattr(room_of_member, "_PAGE", 2)
    async with belonging(url, name, client) as them:
        entries = await them.deliver(ONE, 5)
        await them.deliver(OTHER, 2)
        await client.xdel(name, entries[1].id)

        found = await them.one.own_pending(
            in_lane=False, held=lambda entry_id: entry_id == entries[0].id
        )

        assert [one.id for one in found] == [one.id for one in entries[2:]]
        assert [await them.count(one) for one in found] == [1, 1, 1]
        assert await them.owner(entries[1]) is None


async def test_without_a_lane_there_is_nothing_of_ones_own(
    url: str, name: str, client: Redis
) -> None:
    """It is made with the first message that comes back."""
    async with belonging(url, name, client) as them:
        assert await them.one.own_pending(in_lane=True, held=lambda _: False) == []


# Moving.


@pytest.mark.parametrize("where", ["lane", "later", "dead"])
async def test_what_somebody_else_holds_is_not_moved(
    url: str, name: str, client: Redis, where: Where
) -> None:
    """The fence: a former owner's retry, dead letter and release change nothing."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(ONE)
        await client.xclaim(name, GROUP, OTHER, 0, [entry.id])

        assert await them.one.move([Move(entry, where, entry.fields, 1.0)]) == [False]

        assert await them.owner(entry) == b"other"
        assert await left(client, name, GROUP) == Left(
            stream=1, pending=1, names=(b"one", b"other")
        )
        assert await dead_letters(client, name) == []


async def test_a_move_sent_twice_is_done_once(
    url: str, name: str, client: Redis
) -> None:
    """Its reply was lost: the second time it says that nothing is held any more."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(ONE)
        move = Move(entry, "dead", entry.fields)

        answers = [await them.one.move([move]) for _ in range(2)]

        assert answers == [[True], [False]]
        assert len(await dead_letters(client, name)) == 1


async def test_moves_are_answered_in_order_whatever_calls_they_travel_in(
    url: str, name: str, client: Redis
) -> None:
    """Of the stream and of the lane, mixed, more than one call takes."""
    async with belonging(url, name, client) as them:
        ours = await them.deliver(OTHER, 70)
        back = await them.hand_back(*ours[:2])
        gone = Entry(b"1-1", [b"body", b"x"], in_lane=False)
        mixed = [back[0], gone, *ours[2:], back[1]]

        answers = await them.other.move(
            [Move(one, "dead", one.fields) for one in mixed]
        )

        assert answers == [True, False] + [True] * 69
        assert len(await dead_letters(client, name)) == 70
        assert await left(client, name, GROUP) == Left(names=(b"other", b"other"))


async def test_moving_without_the_group_moves_nothing(
    url: str, name: str, client: Redis
) -> None:
    """Somebody destroyed it: nothing is held, and that is no error."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(ONE)
        await client.xgroup_destroy(name, GROUP)

        assert await them.one.move([Move(entry, "lane", entry.fields)]) == [False]


def moving(size: int, *, in_lane: bool = False) -> Move:
    """Make a move of so many bytes."""
    entry = Entry(b"1-0", [], in_lane=in_lane)
    return Move(entry, "lane", [b"body", b"x" * size])


@pytest.mark.parametrize(
    ("moves", "lengths"),
    [
        ([], []),
        ([moving(1)] * 64, [64]),
        ([moving(1)] * 65, [64, 1]),
        ([moving(400_000)] * 5, [2, 2, 1]),
        ([moving(5_000_000)] * 2, [1, 1]),
        ([moving(1), moving(1, in_lane=True), moving(1)], [2, 1]),
    ],
)
def test_one_call_moves_a_bounded_part(
    moves: Sequence[Move], lengths: list[int]
) -> None:
    """So many entries, so many bytes, one source; a larger message travels alone."""
    parts = room_of_member._parts(moves)

    assert [len(part) for part in parts] == lengths
    assert sorted(at for part in parts for at in part) == list(range(len(moves)))


# Leases.


@pytest.mark.parametrize("in_lane", [False, True])
async def test_renewing_is_as_if_just_delivered_but_no_delivery(
    url: str, name: str, client: Redis, in_lane: bool
) -> None:
    """Age begins anew, counts and owner stay."""
    async with belonging(url, name, client) as them:
        entries = await them.deliver(OTHER, 3)
        if in_lane:
            entries = await them.hand_back(*entries)
        await them.age(*entries)

        lost = await them.other.renew([one.id for one in entries], in_lane=in_lane)

        assert lost == []
        for entry in entries:
            assert await them.idle(entry) < 5
            assert (await them.owner(entry), await them.count(entry)) == (b"other", 1)


async def test_what_is_not_held_any_more_is_lost_and_left_alone(
    url: str, name: str, client: Redis
) -> None:
    """Somebody took one over, and one is settled; the rest is renewed all the same."""
    async with belonging(url, name, client) as them:
        stolen, settled, mine = entries = await them.deliver(ONE, 3)
        await client.xclaim(name, GROUP, OTHER, 0, [stolen.id])
        await client.xack(name, GROUP, settled.id)
        await them.age(stolen, mine)

        lost = await them.one.renew([one.id for one in entries], in_lane=False)

        assert lost == [stolen.id, settled.id]
        assert (await them.owner(stolen), await them.owner(mine)) == (b"other", b"one")
        assert await them.idle(stolen) > 50
        assert await them.idle(mine) < 5


async def test_a_few_are_found_among_many_others(
    url: str, name: str, client: Redis
) -> None:
    """More lies between the first and the last than one page of the server's has."""
    async with belonging(url, name, client) as them:
        [first] = await them.deliver(ONE)
        await them.deliver(ONE, 450)
        [last] = await them.deliver(ONE)
        await them.age(first, last)

        assert await them.one.renew([first.id, last.id], in_lane=False) == []
        assert await them.idle(last) < 5


async def test_without_the_group_renewing_says_so(
    url: str, name: str, client: Redis
) -> None:
    """What that means is not decided here."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(ONE)
        await client.xgroup_destroy(name, GROUP)

        with pytest.raises(CommandRefusedError) as caught:
            await them.one.renew([entry.id], in_lane=False)

        assert caught.value.code == "NOGROUP"


# Recovery.


@pytest.mark.parametrize("in_lane", [False, True])
async def test_an_abandoned_entry_is_taken_over_and_marked(
    url: str, name: str, client: Redis, in_lane: bool
) -> None:
    """From the stream and from the lane; the mark needs no memory."""
    async with belonging(url, name, client) as them:
        entries = await them.deliver(OTHER)
        if in_lane:
            entries = await them.hand_back(*entries)
        await them.age(*entries)

        found = await them.recover()

        assert found.entry is not None
        assert (found.entry.id, found.entry.in_lane) == (entries[0].id, in_lane)
        assert found.entry.fields[:2] == [b"body", b"x"]
        assert (found.entry.crashes, found.more) == (0, True)
        assert await them.owner(found.entry) == b"one"
        assert await them.count(found.entry) == MARK
        assert await them.idle(found.entry) < 5


async def test_only_what_nobody_renews_is_abandoned(
    url: str, name: str, client: Redis
) -> None:
    """Not what is young, whoever has it."""
    async with belonging(url, name, client) as them:
        [young] = await them.deliver(OTHER)
        [mine] = await them.deliver(ONE)
        await them.age(young, mine, seconds=VISIBILITY - 5)

        found = await them.recover()

        assert (found.entry, found.more) == (None, False)
        assert (await them.owner(young), await them.owner(mine)) == (b"other", b"one")


@pytest.mark.parametrize("in_lane", [False, True])
async def test_a_look_says_when_the_first_lease_of_others_ends(
    url: str, name: str, client: Redis, in_lane: bool
) -> None:
    """Before that there is nothing to look for; one's own renewals are one's own business."""
    async with belonging(url, name, client) as them:
        assert (await them.recover()).lease_ends is None
        [mine] = await them.deliver(ONE)
        await them.age(mine, seconds=VISIBILITY - 1)
        assert (await them.recover()).lease_ends is None

        entries = await them.deliver(OTHER, 3)
        if in_lane:
            entries = await them.hand_back(*entries)
        for entry, left in zip(entries, (20, 5, 10), strict=True):
            await them.age(entry, seconds=VISIBILITY - left)
        found = await them.recover()

        assert found.entry is None
        assert found.lease_ends is not None
        assert 0 < found.lease_ends <= 5


async def test_what_one_does_not_know_to_hold_is_no_suspect(
    url: str, name: str, client: Redis
) -> None:
    """A reply was lost, and nobody has died: it is not marked, and no mark is charged."""
    async with belonging(url, name, client) as them:
        [long] = await them.deliver(OTHER)
        running = await them.crash(long)
        [mine, marked] = await them.deliver(ONE, 2)
        await client.xclaim(
            name, GROUP, ONE, 0, [marked.id], retrycount=MARK + 1, justid=True
        )
        await them.age(mine, marked)

        found = [(await look(them.one, running=running)).entry for _ in range(2)]

        assert [one and (one.id, one.crashes) for one in found] == [
            (mine.id, 0),
            (marked.id, 1),
        ]
        assert await them.count(mine) == 1
        assert [await them.count(one) for one in (marked, long)] == [MARK + 1, MARK]
        assert await them.idle(mine) < 5


async def test_they_come_one_at_a_time(url: str, name: str, client: Redis) -> None:
    """Oldest first, and each look says that it is worth going on."""
    async with belonging(url, name, client) as them:
        entries = await them.deliver(OTHER, 3)
        await them.age(*entries)

        found = [await them.recover() for _ in range(4)]

        assert [one.entry and one.entry.id for one in found] == [
            *[one.id for one in entries],
            None,
        ]
        assert [one.more for one in found] == [True, True, True, False]


async def test_who_may_not_take_leaves_all_as_it_is_to_those_who_may(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It only writes down where the group stands; the next look begins where it would have."""
    monkeypatch.setattr(room_of_member, "_PAGE", 1)
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(OTHER)
        await them.age(entry)

        found = await them.recover(take=False)

        assert (found.entry, found.more) == (None, False)
        assert await them.owner(entry) == b"other"
        assert entry.id in (await them.agreed("place:billing") or b"")
        taken = (await them.recover()).entry
        assert taken is not None
        assert taken.id == entry.id


async def test_what_was_deleted_is_cleaned_out(
    url: str, name: str, client: Redis
) -> None:
    """6.2 would keep it pending for ever."""
    async with belonging(url, name, client) as them:
        entries = await them.deliver(OTHER, 3)
        await them.age(*entries)
        await client.xdel(name, entries[0].id, entries[1].id)

        found = await them.recover()

        assert found.entry is not None
        assert found.entry.id == entries[2].id
        assert [await them.owner(one) for one in entries] == [None, None, b"one"]


async def test_each_death_while_marked_is_a_crash(
    url: str, name: str, client: Redis
) -> None:
    """The first time it was only beside; from then on it was the suspect."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(OTHER)

        crashes = [(await them.crash(entry)).crashes for _ in range(4)]

        assert crashes == [0, 1, 2, 3]
        assert await them.count(entry) == MARK + 3


async def test_of_suspects_that_run_together_none_is_charged(
    url: str, name: str, client: Redis
) -> None:
    """One runs for long; another is taken over meanwhile; the process dies of either."""
    async with belonging(url, name, client) as them:
        long, short = await them.deliver(OTHER, 2)
        await them.age(long, short)
        first = await them.recover()
        assert first.entry is not None
        assert await them.count(first.entry) == MARK

        second = await them.recover(running=first.entry)

        assert second.entry is not None
        assert second.entry.id == short.id
        assert not first.for_alone
        assert not second.for_alone
        assert [await them.count(one) for one in (long, short)] == [UNSURE] * 2
        await them.age(long, short)
        found = {}
        while len(found) < 2:
            again = await look(them.other)
            if again.entry is not None:
                found[again.entry.id] = (again.entry.crashes, again.for_alone)
        assert found == {long.id: (0, True), short.id: (0, True)}


@pytest.mark.parametrize("mark", [UNSURE, MARK, MARK + 1])
async def test_who_was_a_suspect_before_is_left_until_it_may_run_alone(
    url: str, name: str, client: Redis, mark: int
) -> None:
    """What kills after a while would never be found out if something always ran beside it."""
    async with belonging(url, name, client) as them:
        suspect, first, innocent = await them.deliver(OTHER, 3)
        await client.xclaim(
            name, GROUP, OTHER, 0, [suspect.id], retrycount=mark, justid=True
        )
        await them.age(first)
        running = (await them.recover()).entry
        assert running is not None
        await them.age(suspect, innocent)

        found = [(await look(them.one, running=running)).entry for _ in range(3)]

        assert [one.id for one in found if one is not None] == [innocent.id]
        assert await them.owner(suspect) == b"other"
        assert await them.count(suspect) == mark
        joined = await look(them.one, running=running, takes_any=True)
        assert joined.entry is not None
        assert (joined.entry.id, joined.for_alone) == (suspect.id, True)
        crashes = max(0, mark - MARK + 1)
        assert joined.entry.crashes == crashes
        assert await them.count(suspect) == UNSURE + crashes


async def test_earlier_crashes_are_kept_when_a_mark_is_taken_back(
    url: str, name: str, client: Redis
) -> None:
    """It has killed once: that is known, whatever runs beside it now."""
    async with belonging(url, name, client) as them:
        killer, innocent = await them.deliver(OTHER, 2)
        await them.crash(killer)  # held by the one
        await them.crash(killer)  # by the other
        suspect = await them.crash(killer)  # and by the one again
        assert suspect.crashes == 2
        await them.age(innocent)

        found = await them.recover(running=suspect)

        assert found.entry is not None
        assert (found.entry.id, found.entry.crashes) == (innocent.id, 0)
        assert await them.count(killer) == UNSURE + 2
        assert (await them.crash(killer)).crashes == 2


async def test_the_mark_of_a_settled_suspect_is_not_looked_for(
    url: str, name: str, client: Redis
) -> None:
    """It has ended since; the next one is taken all the same."""
    async with belonging(url, name, client) as them:
        first, second = await them.deliver(OTHER, 2)
        await them.age(first)
        running = (await them.recover()).entry
        assert running is not None
        await client.xack(name, GROUP, first.id)
        await them.age(second)

        found = await them.recover(running=running)

        assert found.entry is not None
        assert found.entry.id == second.id


async def test_crashes_travel_with_a_message_that_was_handed_back(
    url: str, name: str, client: Redis
) -> None:
    """Its process was told to stop: as an entry of the lane it has another delivery count."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(OTHER)
        fields = [*entry.fields, b"mq-crashes", b"2"]
        await them.other.move([Move(entry, "lane", fields)])
        [back] = (await them.other.take(1)).entries
        assert await them.count(back) == 1
        await them.age(back)

        found = await them.recover()

        assert found.entry is not None
        assert found.entry.crashes == 2
        assert await them.count(back) == MARK + 2


@pytest.mark.parametrize(
    "nonsense", [b"", b"many", b"-3", b"\xff", b"1.5", b"inf", b"nan", b"1e400", b"0x9"]
)
async def test_nonsense_for_a_number_of_crashes_is_none(
    url: str, name: str, client: Redis, nonsense: bytes
) -> None:
    """A header of ours in the lane, written by somebody else: it stops nobody."""
    async with belonging(url, name, client) as them:
        fields = {b"body": b"x", b"mq-crashes": nonsense}
        await client.xadd(them.key(in_lane=True), fields)
        [back] = (await them.other.take(1)).entries
        await them.age(back)

        found = await them.recover()

        assert found.entry is not None
        assert found.entry.crashes == 0


async def test_a_number_of_crashes_in_the_stream_is_somebody_elses_word(
    url: str, name: str, client: Redis
) -> None:
    """Only what came back carries it: a copy of a dead letter begins anew."""
    async with belonging(url, name, client) as them:
        await client.xadd(name, {b"body": b"x", b"mq-crashes": b"7"})
        [entry] = await them.deliver(OTHER)
        await them.age(entry)

        found = await them.recover()

        assert found.entry is not None
        assert found.entry.crashes == 0


async def test_a_request_that_was_held_up_claims_nothing(
    url: str, name: str, client: Redis
) -> None:
    """A paused server answers it when every lease looks abandoned."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(OTHER)
        await them.age(entry)
        seconds, _ = await client.time()

        found = await them.one.recover(
            visibility_timeout=VISIBILITY, take_until=seconds - 1
        )

        assert found.entry is None
        assert await them.owner(entry) == b"other"


async def test_a_look_is_bounded_and_the_next_goes_on_from_there(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever of the group looks next; after the last page it begins again."""
    monkeypatch.setattr(room_of_member, "_PAGE", 4)
    monkeypatch.setattr(room_of_member, "_PACE", 0.0)
    async with belonging(url, name, client) as them:
        entries = await them.deliver(OTHER, 10)
        await them.age(entries[0], entries[9])
        third = Member(them.stream, GROUP, "third")

        looks = [await look(member) for member in (them.one, third, them.one, third)]

        # Behind the first one taken over lie two pages; then the rest, which is less.
        ids = [one.entry and one.entry.id for one in looks]
        assert ids == [entries[0].id, None, None, entries[9].id]
        assert [one.more for one in looks] == [True, True, True, True]


async def test_a_group_looks_at_its_pace_however_many_it_is(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One goes through a long list, and others who come meanwhile leave it to that one."""
    monkeypatch.setattr(room_of_member, "_PAGE", 4)
    monkeypatch.setattr(room_of_member, "_PACE", 60.0)
    async with belonging(url, name, client) as them:
        entries = await them.deliver(OTHER, 10)
        await them.age(entries[5])
        third = Member(them.stream, GROUP, "third")

        first, second = await look(them.one), await look(third)

        assert (first.entry, first.more) == (None, True)
        assert (second.entry, second.more) == (None, False)
        monkeypatch.setattr(room_of_member, "_PACE", 0.0)
        found = (await look(third)).entry
        assert found is not None
        assert found.id == entries[5].id


async def test_what_a_missed_consumer_held_does_not_wait_for_its_page(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much the living hold: they are seen at each renewal."""
    monkeypatch.setattr(room_of_member, "_PAGE", 4)
    async with belonging(url, name, client) as them:
        held = [entry.id for entry in await them.deliver("busy", 20)]
        missed = await them.deliver(OTHER, 3)
        await asyncio.sleep(0.6)
        await client.xclaim(name, GROUP, "busy", 0, held, justid=True)

        found = [await look(them.one, visibility_timeout=0.5) for _ in missed]

        assert [one.entry and one.entry.id for one in found] == [
            one.id for one in missed
        ]


async def test_what_is_taken_over_keeps_nobody_from_the_next(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many take over what one has left, all at once."""
    monkeypatch.setattr(room_of_member, "_PACE", 60.0)
    async with belonging(url, name, client) as them:
        entries = await them.deliver(OTHER, 3)
        await them.age(*entries)
        third = Member(them.stream, GROUP, "third")

        looks = [await look(member) for member in (them.one, third, them.one)]

        assert [one.entry and one.entry.id for one in looks] == [
            one.id for one in entries
        ]


async def test_the_longest_visibility_timeout_of_the_group_counts(
    url: str, name: str, client: Redis
) -> None:
    """Rolled out to one process after the other: nobody steals from those that renew seldom."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(OTHER)
        await them.age(entry, seconds=60)
        await look(them.other, take=False, visibility_timeout=300.0)

        assert (await them.recover()).entry is None
        assert (await them.agreed("visibility:billing") or b"").startswith(b"300000 ")


async def test_a_longer_one_that_nobody_says_again_runs_out(
    url: str, name: str, client: Redis
) -> None:
    """Its process is gone; twice its length and a minute later the own one counts."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(OTHER)
        await them.age(entry, seconds=60)
        seconds, _ = await client.time()
        said = f"300000 {(seconds - 700) * 1000}"
        await client.hset(them.stream.keys.queue, "visibility:billing", said)

        assert (await them.recover()).entry is not None
        assert (await them.agreed("visibility:billing") or b"").startswith(b"10000 ")


async def test_recovery_works_under_a_full_memory(
    own_server: RedisServer, name: str
) -> None:
    """That is when processes die. What it would remember beside is left out."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        belonging(own_server.url, name, client) as them,
    ):
        [entry] = await them.deliver(OTHER)
        await them.age(entry)
        await client.config_set("maxmemory", 1)

        found = await them.recover()

        assert found.entry is not None
        assert await them.count(entry) == MARK
        await client.config_set("maxmemory", 0)


async def test_without_the_group_a_look_says_so(
    url: str, name: str, client: Redis
) -> None:
    """Whoever looks makes it again."""
    async with belonging(url, name, client) as them:
        await client.xgroup_destroy(name, GROUP)

        with pytest.raises(CommandRefusedError) as caught:
            await them.recover()

        assert caught.value.code == "NOGROUP"


# Names.


async def test_a_name_that_holds_nothing_is_forgotten(
    url: str, name: str, client: Redis
) -> None:
    """In the stream's group and in the lane's."""
    async with belonging(url, name, client) as them:
        entries = await them.hand_back(*await them.deliver(OTHER, 2))
        await client.xack(them.key(in_lane=True), GROUP, *[one.id for one in entries])

        assert await them.other.forget()

        assert (await left(client, name, GROUP)).names == ()


@pytest.mark.parametrize("in_lane", [False, True])
async def test_a_name_that_holds_something_stays(
    url: str, name: str, client: Redis, in_lane: bool
) -> None:
    """Redis would destroy what is pending under it."""
    async with belonging(url, name, client) as them:
        entries = await them.deliver(OTHER)
        if in_lane:
            entries = await them.hand_back(*entries)

        assert not await them.other.forget()

        assert await them.owner(entries[0]) == b"other"


async def test_names_of_the_dead_are_retired(
    url: str, name: str, client: Redis
) -> None:
    """Those that hold nothing; the one who asks keeps its own."""
    async with belonging(url, name, client) as them:
        for consumer in ("gone", "gone-too", ONE):
            [entry] = await them.deliver(consumer)
            await client.xack(name, GROUP, entry.id)
        await them.deliver("holds")
        await them.hand_back(*await them.deliver(OTHER))
        await client.xgroup_createconsumer(them.key(in_lane=True), GROUP, "idle")

        assert await them.one.retire_others(inactive=0.0) == 3

        names = (await left(client, name, GROUP)).names
        assert set(names) == {b"one", b"holds", b"other"}
        assert await them.one.retire_others(inactive=0.0) == 0


async def test_who_was_active_lately_keeps_its_name(
    url: str, name: str, client: Redis
) -> None:
    """It merely has nothing to do."""
    async with belonging(url, name, client) as them:
        [entry] = await them.deliver(OTHER)
        await client.xack(name, GROUP, entry.id)

        assert await them.one.retire_others(inactive=3600.0) == 0
        assert (await left(client, name, GROUP)).names == (b"other",)


async def test_nothing_of_the_stream_is_touched_when_there_is_nothing(
    url: str, name: str, client: Redis
) -> None:
    """Retiring and forgetting make no keys."""
    async with belonging(url, name, client) as them:
        await client.delete(name)

        assert await them.one.retire_others(inactive=0.0) == 0
        assert await them.one.forget()

        assert await left(client, name, GROUP) == NOTHING
        assert not await client.exists(name, them.key(in_lane=True))


async def test_a_million_years_of_names_cost_one_look(
    url: str, name: str, client: Redis
) -> None:
    """Two thousand dead names are gone in one call, within a fraction of a second."""
    async with belonging(url, name, client) as them:
        async with client.pipeline(transaction=False) as pipe:
            for number in range(2000):
                pipe.xgroup_createconsumer(name, GROUP, f"pod-{number}")
            await pipe.execute()
        begun = time.perf_counter()

        assert await them.one.retire_others(inactive=0.0) == 2000

        assert time.perf_counter() - begun < 5


async def test_dead_letters_are_kept_as_long_as_they_are_to_be(
    url: str, name: str, client: Redis
) -> None:
    """By the server's clock; without a limit they stay."""
    async with belonging(url, name, client) as them:
        dead = them.stream.keys.dead
        seconds, _ = await client.time()
        old = await client.xadd(dead, {"body": "1"}, id=f"{(seconds - 100) * 1000}-0")
        new = await client.xadd(dead, {"body": "2"})

        await them.one.retire_others(inactive=3600.0)
        assert [entry_id for entry_id, _ in await client.xrange(dead)] == [old, new]
        await them.one.retire_others(inactive=3600.0, retention=50.0)

        assert [entry_id for entry_id, _ in await client.xrange(dead)] == [new]
