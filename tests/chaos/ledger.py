"""What was accepted and what became of it: the only judge of the fault tests."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.looking import NOTHING, Left, dead_letters, left

if TYPE_CHECKING:
    from tests.support import Client


@dataclass(slots=True)
class Ledger:
    """The history of a load, written down where it happens.

    Attributes:
        accepted: Bodies whose `produce` returned an id.
        refused: Bodies whose `produce` raised, so that nothing may be stored.
        handled: How often each body was handled with success.
        rejected: Bodies a handler has given up: each must be a dead letter.
        taken: Bodies the server has lost itself, by FLUSHALL or an unreplicated failover.
        running: Handlers that run now.
    """

    accepted: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    handled: Counter[int] = field(default_factory=Counter)
    rejected: set[int] = field(default_factory=set)
    taken: set[int] = field(default_factory=set)
    running: int = 0

    @property
    def open(self) -> set[int]:
        """Accepted, and neither handled nor given up until now."""
        return self.accepted - self.handled.keys() - self.rejected - self.taken


@dataclass(frozen=True, slots=True)
class Verdict:
    """The exact counts, when all is settled."""

    accepted: int
    refused: int
    handled: int
    dead: int
    taken: int
    lost: int
    """Accepted, and neither handled nor a dead letter nor taken by the server."""
    unwanted: int
    """Handled or dead although the sender was told that it is not stored."""
    duplicates: int
    """Successes and dead letters that a message had too often."""
    left: Left

    def holds(self, duplicates: int = 0) -> bool:
        """Say whether nothing is lost, unwanted or left, and no more was done twice."""
        kept = self.lost == self.unwanted == 0 and self.left == NOTHING
        return kept and self.duplicates <= duplicates


async def judge(ledger: Ledger, client: Client, name: str) -> Verdict:
    """Compare what was written down with what a plain client sees on the server."""
    letters = await dead_letters(client, name)
    dead = Counter(json.loads(letter[b"body"]) for letter in letters)
    done = ledger.handled + dead
    verdict = Verdict(
        accepted=len(ledger.accepted),
        refused=len(ledger.refused),
        handled=len(ledger.handled),
        dead=len(dead),
        taken=len(ledger.taken & ledger.accepted - done.keys()),
        lost=len(ledger.accepted - done.keys() - ledger.taken),
        unwanted=len(ledger.refused & done.keys()),
        duplicates=done.total() - len(done),
        left=await left(client, name),
    )
    print(verdict)  # noqa: T201 -- `pytest -rP` shows it of tests that pass, too
    return verdict
