from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq import ConnectionLostError
from aioredismq._address import arguments
from aioredismq._failover import Failover
from aioredismq._sentinels import Master, Sentinels, is_outdated, is_successor
from aioredismq.testing import FaultyLine
from tests.services import Service, service
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aioredismq.testing import RedisServer, SentinelSet


# Whom to believe.


@pytest.mark.parametrize(
    ("told", "known", "outdated", "successor"),
    [
        (("a", 5), ("a", 5), False, False),
        (("b", 6), ("a", 5), False, True),
        (("a", 5), ("b", 6), True, False),
        (("b", 5), ("b", 6), True, False),
        (("a", 6), ("a", 5), False, False),
        # One failover makes one master: that is another name of it.
        (("b", 5), ("a", 5), False, False),
        # Where the epoch may not be asked, what is said last counts.
        (("b", None), ("a", 5), False, True),
        (("b", 5), ("a", None), False, True),
        (("b", None), ("a", None), False, True),
        (("a", None), ("a", 5), False, False),
    ],
)
def test_the_later_failover_is_right(
    told: tuple[str, int | None],
    known: tuple[str, int | None],
    outdated: bool,
    successor: bool,
) -> None:
    """Whoever tells of it, and in whatever order."""
    one, other = (Master(host, 6379, epoch) for host, epoch in (told, known))

    assert is_outdated(one, other) is outdated
    assert is_successor(one, other) is successor


masters = st.builds(
    Master,
    st.sampled_from(["a", "b"]),
    st.sampled_from([1, 2]),
    st.integers(0, 3) | st.none(),
)


@given(masters, masters)
def test_of_two_answers_with_epochs_one_at_most_succeeds_the_other(
    one: Master, other: Master
) -> None:
    """Or two sentinels would lead connections back and forth."""
    if None not in (one.epoch, other.epoch):
        assert not (is_successor(one, other) and is_successor(other, one))
    assert not (is_successor(one, other) and is_outdated(one, other))


# Asking.


class Clock:
    """Shows what the test says."""

    def __init__(self) -> None:
        """Begin somewhere."""
        self.now = 100.0

    def __call__(self) -> float:
        """Tell."""
        return self.now


def asked(
    name: str, servers: Sequence[RedisServer], clock: Clock | None = None, **more: Any
) -> Sentinels:
    """Prepare to ask some sentinels for a service."""
    shared = {**arguments("redis://127.0.0.1", 8.0), **more}
    places = [{**shared, "port": each.port} for each in servers]
    return Sentinels(name, places, 8.0, clock=clock or Clock())


async def told(sentinels: Sentinels, number: int = 0, *, resp3: bool = False) -> Master:
    """Ask one of them."""
    address = sentinels.addresses[number]
    async with sentinels.line(address) as line:
        if resp3:
            await line.call("HELLO", 3)
        return await sentinels.ask(line, address)


def heard_of(sentinels: Sentinels) -> list[int]:
    """Collect where to be, by port."""
    ports: list[int] = []
    sentinels.on_move(lambda place, _: ports.append(place[1]))
    return ports


@pytest.mark.parametrize("resp3", [False, True], ids=["RESP2", "RESP3"])
async def test_a_sentinel_names_the_master_and_its_failover(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer, resp3: bool
) -> None:
    """In either protocol."""
    with service(sentinel, own_server) as watched:
        before = await told(asked(watched.name, sentinel.sentinels[:1]), resp3=resp3)
        await watched.hand_over(server)
        after = await told(asked(watched.name, sentinel.sentinels[:1]), resp3=resp3)

    assert before == Master("127.0.0.1", own_server.port, 0)
    assert after == Master("127.0.0.1", server.port, 1)


async def test_a_service_nobody_watches_is_named(sentinel: SentinelSet) -> None:
    """With the sentinel that was asked."""
    port = sentinel.sentinels[0].port

    with pytest.raises(
        ConnectionLostError, match=rf"sentinel 127\.0\.0\.1:{port} knows no .*'nobody'"
    ):
        await told(asked("nobody", sentinel.sentinels))


async def test_a_handover_is_told_to_who_wants_to_know(
    sentinel: SentinelSet,
    server: RedisServer,
    own_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, and it is written down."""
    caplog.set_level(logging.INFO, "aioredismq")
    with service(sentinel, own_server) as watched:
        sentinels = asked(watched.name, sentinel.sentinels)
        heard = heard_of(sentinels)
        await told(sentinels)
        assert not sentinels.has_handed_over(("127.0.0.1", own_server.port))

        await watched.hand_over(server)
        for number in range(3):
            await told(sentinels, number)

    assert heard == [own_server.port, server.port]
    assert sentinels.has_handed_over(("127.0.0.1", own_server.port))
    assert not sentinels.has_handed_over(("127.0.0.1", server.port))
    [said] = [record for record in caplog.records if record.name == "aioredismq"]
    assert said.getMessage() == (
        f"the master of {watched.name!r} is 127.0.0.1:{server.port} now"
    )


async def test_a_master_may_come_back(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer
) -> None:
    """By a failover of its own."""
    with service(sentinel, own_server) as watched:
        sentinels = asked(watched.name, sentinel.sentinels)
        await told(sentinels)
        for master in (server, own_server):
            await watched.hand_over(master)
            await told(sentinels)

    assert not sentinels.has_handed_over(("127.0.0.1", own_server.port))
    assert sentinels.has_handed_over(("127.0.0.1", server.port))


async def test_who_has_not_heard_is_not_believed_while_somebody_knows_better(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer
) -> None:
    """For half a minute after he was asked; without an end nothing could ever begin anew."""
    clock = Clock()
    late = sentinel.sentinels[1]
    with service(sentinel, own_server, by=slice(1)) as watched:
        sentinels = asked(watched.name, sentinel.sentinels[:2], clock)
        await watched.hand_over(server)
        await told(sentinels)
        clock.now += 25
        await told(sentinels)
        watched.watch(late, own_server)

        clock.now += 29
        with pytest.raises(ConnectionLostError, match="has not heard that"):
            await told(sentinels, 1)
        clock.now += 2
        believed = await told(sentinels, 1)

        watched.forget(late)
    assert believed == Master("127.0.0.1", own_server.port, 0)
    assert sentinels.has_handed_over(("127.0.0.1", server.port))
    assert not sentinels.has_handed_over(("127.0.0.1", own_server.port))


async def test_another_name_of_the_master_is_no_handover(
    sentinel: SentinelSet, server: RedisServer
) -> None:
    """Sentinels may call it differently: the one that is asked decides where to connect."""
    async with FaultyLine(server.url) as line:
        with service(sentinel, server, by=slice(1)) as watched:
            other = sentinel.sentinels[1]
            other.command(
                "SENTINEL", "MONITOR", watched.name, "127.0.0.1", line.port, 3
            )
            sentinels = asked(watched.name, sentinel.sentinels[:2])
            heard = heard_of(sentinels)

            names = [(await told(sentinels, number)).port for number in (0, 1, 0)]

            watched.forget(other)
    assert names == [server.port, line.port, server.port]
    assert len(heard) == 1
    assert not sentinels.has_handed_over(("127.0.0.1", server.port))


async def test_the_failover_need_not_be_told(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer
) -> None:
    """To a user who may not ask for it, what was said last is right."""
    user = f"u{secrets.token_hex(4)}"
    first = sentinel.sentinels[0]
    rules = ("-sentinel", "+sentinel|get-master-addr-by-name")
    first.command("ACL", "SETUSER", user, "on", "nopass", "+@all", *rules)
    with service(sentinel, own_server) as watched:
        sentinels = asked(watched.name, [first], username=user, password=user)
        before = await told(sentinels)
        await watched.hand_over(server)
        after = await told(sentinels)

    assert before == Master("127.0.0.1", own_server.port, None)
    assert after == Master("127.0.0.1", server.port, None)
    assert sentinels.has_handed_over(("127.0.0.1", own_server.port))
    first.command("ACL", "DELUSER", user)


async def test_where_failovers_are_not_numbered_only_news_count(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer
) -> None:
    """Who says what he has always said has not heard; but not for ever."""
    user, clock = f"u{secrets.token_hex(4)}", Clock()
    rules = ("-sentinel", "+sentinel|get-master-addr-by-name")
    two = sentinel.sentinels[:2]
    late = two[1]
    for each in two:
        each.command("ACL", "SETUSER", user, "on", "nopass", "+@all", *rules)
    with service(sentinel, own_server, by=slice(1)) as watched:
        sentinels = asked(watched.name, two, clock, username=user, password=user)
        heard = heard_of(sentinels)
        watched.watch(late, own_server)
        for number in (0, 1):
            await told(sentinels, number)
        watched.forget(late)
        await watched.hand_over(server)
        await told(sentinels)
        watched.watch(late, own_server)

        named = await told(sentinels, 1)
        assert named.port == own_server.port
        assert sentinels.has_handed_over(named.place)
        assert heard == [own_server.port, server.port]
        clock.now += 31
        await told(sentinels, 1)
        assert heard == [own_server.port, server.port, own_server.port]

        watched.forget(late)
    for each in two:
        each.command("ACL", "DELUSER", user)


# A failover that has begun.


@pytest.fixture
def watched(sentinel: SentinelSet, own_server: RedisServer) -> Iterator[Service]:
    """A service with a master of its own."""
    with service(sentinel, own_server) as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    """Seconds that pass when the test says so."""
    return Clock()


@pytest.fixture
async def sentinels(watched: Service, clock: Clock) -> Sentinels:
    """They have been asked for the master."""
    made = asked(watched.name, watched.sentinels, clock)
    await told(made)
    return made


def failover(master: RedisServer, replica: RedisServer) -> Failover:
    """Make one from server to server."""
    return Failover(("127.0.0.1", replica.port), ("127.0.0.1", master.port))


async def test_the_master_of_a_failover_is_left_when_it_begins(
    watched: Service,
    sentinels: Sentinels,
    server: RedisServer,
    own_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For the replica that was selected, until a sentinel tells that it is the master."""
    caplog.set_level(logging.INFO, "aioredismq")
    heard = heard_of(sentinels)
    begun = failover(own_server, server)

    sentinels.begin(begun, sentinels.addresses[1])
    await told(sentinels)  # who does not know yet

    assert heard == [server.port]
    assert sentinels.selected == begun.replica
    assert sentinels.has_handed_over(begun.master)
    assert not sentinels.has_handed_over(begun.replica)
    await watched.hand_over(server)
    await told(sentinels)
    assert heard == [server.port, server.port]
    assert sentinels.selected is None
    assert sentinels.has_handed_over(begun.master)
    assert not sentinels.has_handed_over(begun.replica)
    assert [record.getMessage() for record in caplog.records] == [
        f"a failover of {watched.name!r} has begun: 127.0.0.1:{server.port} is to be the master",
        f"the master of {watched.name!r} is 127.0.0.1:{server.port} now",
    ]


async def test_a_failover_back_begins_while_the_last_is_remembered(
    watched: Service, sentinels: Sentinels, server: RedisServer, own_server: RedisServer
) -> None:
    """What has handed over once may be selected, and gone to."""
    await watched.hand_over(server)
    await told(sentinels)

    sentinels.begin(failover(server, own_server), sentinels.addresses[0])

    assert sentinels.has_handed_over(("127.0.0.1", server.port))
    assert not sentinels.has_handed_over(("127.0.0.1", own_server.port))


async def test_a_failover_that_does_not_come_is_waited_for_five_seconds(
    watched: Service,
    sentinels: Sentinels,
    clock: Clock,
    server: RedisServer,
    own_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Then the master is whom the sentinels name, and what was selected is left."""
    caplog.set_level(logging.INFO, "aioredismq")
    heard = heard_of(sentinels)
    begun = failover(own_server, server)
    assert sentinels.longest_wait(10.0) == 10.0
    sentinels.begin(begun, sentinels.addresses[0])
    clock.now += 4.9
    await told(sentinels)
    assert sentinels.selected == begun.replica
    assert sentinels.longest_wait(10.0) == pytest.approx(0.1)

    clock.now += 0.1
    assert sentinels.selected is None
    assert not sentinels.has_handed_over(begun.master)
    assert sentinels.longest_wait(10.0) == 0.0
    for _ in range(2):
        await told(sentinels)

    assert heard == [server.port, own_server.port]
    assert sentinels.has_handed_over(begun.replica)
    assert sentinels.longest_wait(10.0) == 10.0
    assert caplog.records[-1].getMessage() == (
        f"a failover of {watched.name!r} did not come: the master is "
        f"127.0.0.1:{own_server.port} still, not 127.0.0.1:{server.port}"
    )


@pytest.mark.parametrize("numbered", [True, False])
async def test_a_failover_that_did_not_come_ends_whoever_is_asked(
    sentinel: SentinelSet,
    server: RedisServer,
    own_server: RedisServer,
    clock: Clock,
    numbered: bool,
) -> None:
    """Also by one that has another name for the master."""
    user, two = f"u{secrets.token_hex(4)}", sentinel.sentinels[:2]
    rules = () if numbered else ("-sentinel", "+sentinel|get-master-addr-by-name")
    for each in two:
        each.command("ACL", "SETUSER", user, "on", "nopass", "+@all", *rules)
    async with FaultyLine(own_server.url) as line:
        with service(sentinel, own_server, by=slice(1)) as watched:
            name, other = watched.name, two[1]
            other.command("SENTINEL", "MONITOR", name, "127.0.0.1", line.port, 3)
            sentinels = asked(name, two, clock, username=user, password=user)
            heard = heard_of(sentinels)
            for number in (0, 1):
                await told(sentinels, number)
            known = ("127.0.0.1", heard[-1])
            begun = Failover(("127.0.0.1", server.port), known)
            sentinels.begin(begun, sentinels.addresses[0])
            clock.now += 5

            await told(sentinels, 1 if numbered else 0)

            watched.forget(other)
    assert heard[-2:] == [server.port, known[1]]
    assert sentinels.longest_wait(10.0) == 10.0
    for each in two:
        each.command("ACL", "DELUSER", user)


async def test_what_is_announced_again_is_waited_for_longer(
    sentinels: Sentinels, clock: Clock, server: RedisServer, own_server: RedisServer
) -> None:
    """The promotion may be asked for only when the replica can be reached; also after all."""
    heard = heard_of(sentinels)
    begun = failover(own_server, server)
    sentinels.begin(begun, sentinels.addresses[0])
    clock.now += 4.9
    sentinels.begin(begun, sentinels.addresses[0])
    clock.now += 4.9
    await told(sentinels)
    assert sentinels.selected == begun.replica
    assert heard == [server.port]

    clock.now += 0.2
    sentinels.begin(begun, sentinels.addresses[0])

    assert sentinels.selected == begun.replica
    assert heard == [server.port, server.port]


async def test_only_who_leads_a_failover_aborts_it(
    sentinels: Sentinels, server: RedisServer, own_server: RedisServer
) -> None:
    """And nobody one that has not begun."""
    one, other, _ = sentinels.addresses
    heard = heard_of(sentinels)
    sentinels.abort(one)
    sentinels.begin(failover(own_server, server), one)
    sentinels.abort(other)
    assert heard == [server.port]

    sentinels.abort(one)
    sentinels.abort(one)

    assert heard == [server.port, own_server.port]
    assert sentinels.selected is None
    assert not sentinels.has_handed_over(("127.0.0.1", own_server.port))
    assert sentinels.has_handed_over(("127.0.0.1", server.port))


async def test_a_failover_of_another_master_than_the_known_is_none_of_ours(
    watched: Service, sentinels: Sentinels, server: RedisServer, own_server: RedisServer
) -> None:
    """It is led by a sentinel that has missed one; or no master is known yet."""
    heard = heard_of(sentinels)
    other = Failover(("127.0.0.1", 1), ("127.0.0.1", server.port))
    sentinels.begin(other, sentinels.addresses[0])
    nobody = asked(watched.name, watched.sentinels)
    nobody.begin(failover(own_server, server), nobody.addresses[0])

    assert heard == []
    assert sentinels.selected is nobody.selected is None


# Whom to ask.


async def test_who_knew_is_asked_first_and_who_did_not_last(
    sentinel: SentinelSet,
) -> None:
    """The others keep their order."""
    sentinels = asked("s", sentinel.sentinels)
    one, two, three = sentinels.addresses

    sentinels.prefer(two)
    assert sentinels.addresses == [two, one, three]
    sentinels.put_last(two)
    assert sentinels.addresses == [one, three, two]


async def test_a_line_is_closed_whatever_becomes_of_it(sentinel: SentinelSet) -> None:
    """Also when it broke meanwhile, or a question failed."""
    first = sentinel.sentinels[0]
    async with FaultyLine(first.url) as way:
        sentinels = Sentinels(
            "nobody", [{**arguments(way.url, 2.0)}], 1.0, clock=Clock()
        )
        with pytest.raises(ConnectionLostError, match="knows no service"):
            await told(sentinels)
        await eventually(lambda: way.open_connections == 0)

        way.black_hole(only="replies")
        with pytest.raises(ConnectionLostError):
            await told(sentinels)
        way.heal()

        await eventually(lambda: way.open_connections == 0)
