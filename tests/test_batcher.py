from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from aioredismq import _scripts as scripts
from tests.sending import stored

if TYPE_CHECKING:
    from collections.abc import Sequence

# The script.


async def run_append(
    client: Redis,
    name: str,
    number: int,
    low: int,
    bodies: Sequence[str],
    *,
    renew: int = 0,
    memory_ms: int = 60_000,
) -> list[str]:
    """Run append.lua as a batcher would, for a producer called `p`."""
    arguments: list[bytes | str | int] = [number, low, memory_ms, renew, "bell"]
    for body in bodies:
        arguments += (2, "body", body)
    keys = [name, f"{{{name}}}:sent:p"]
    answer: bytes = await client.eval(
        scripts.APPEND.text.decode(), len(keys), *keys, *arguments
    )
    return answer.decode().split(" ")


class FaultyNetwork:
    """A producer on lines that lose, delay and reorder.

    What is written to a line that breaks is executed later, in any order, or never; the producer
    sends it again. It keeps the rule of the protocol: it never sends below the `low` it has said.
    """

    def __init__(self, client: Redis, name: str) -> None:
        """Nothing has been sent."""
        self._client = client
        self._name = name
        self._next = 1
        self._unresolved: set[int] = set()
        self._under_way: list[tuple[int, int]] = []
        self.answers: dict[int, list[str]] = {}
        self.given_up: set[int] = set()

    @property
    def low(self) -> int:
        """The lowest number that may be sent again."""
        return min(self._unresolved, default=self._next)

    def bodies(self, number: int) -> list[str]:
        """What a batch holds."""
        return [f"{number}.{at}" for at in range(number % 3 + 1)]

    async def step(self, what: str, which: int) -> None:
        """Do one thing; `which` chooses among those it can be done to."""
        unresolved = sorted(self._unresolved)
        if what == "send":
            self._unresolved.add(self._next)
            self._next += 1
            self._under_way.append((self._next - 1, self.low))
        elif what == "send again" and unresolved:
            number = unresolved[which % len(unresolved)]
            self._under_way.append((number, self.low))
        elif what == "give up" and unresolved:
            number = unresolved[which % len(unresolved)]
            self._unresolved.remove(number)
            self.given_up.add(number)
        elif what in ("answer", "lose the answer") and self._under_way:
            sent = self._under_way.pop(which % len(self._under_way))
            await self._execute(*sent, is_answered=what == "answer")

    async def _execute(self, number: int, low: int, *, is_answered: bool) -> None:
        bodies = self.bodies(number)
        if number not in self._unresolved:
            with suppress(ResponseError):  # STALE, which is as good
                ids = await run_append(self._client, self._name, number, low, bodies)
                assert self.answers.setdefault(number, ids) == ids
            return
        ids = await run_append(self._client, self._name, number, low, bodies)
        assert self.answers.setdefault(number, ids) == ids
        if is_answered:
            self._unresolved.discard(number)

    async def end(self) -> None:
        """Send what is unresolved until it is answered."""
        for number in sorted(self._unresolved):
            await self._execute(number, self.low, is_answered=True)


STEPS = (
    *("send", "send", "answer", "answer", "answer"),
    *("lose the answer", "send again", "give up"),
)
# Batch 3 is written late, and says a `low` from when batch 1 was not yet forgotten.
LATE = [
    *(("send", 0), ("send again", 0), ("send", 0), ("send", 0), ("answer", 0)),
    *(("give up", 1), ("send", 0), ("answer", 3), ("answer", 2), ("answer", 0)),
]


@settings(max_examples=100, deadline=None)
@example(steps=LATE)
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9)), max_size=60)
)
async def test_in_whatever_order_batches_arrive_each_is_stored_once(
    url: str, steps: list[tuple[str, int]]
) -> None:
    """Late originals, resends, lost answers: what is accepted is stored once, never twice.

    What was given up may have been stored before, but is stored no more once `low` has passed it.
    """
    name = f"append-{secrets.token_hex(4)}"
    async with Redis.from_url(url, protocol=2) as client:
        network = FaultyNetwork(client, name)

        for step in steps:
            await network.step(*step)
        await network.end()

        bodies = list((await stored(client, name)).values())
    expected = [body for number in network.answers for body in network.bodies(number)]
    assert sorted(bodies) == sorted(expected)
