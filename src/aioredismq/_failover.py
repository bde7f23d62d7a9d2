"""A failover that has begun, as the sentinel that leads it announces it. Pure.

Between the promotion of the replica and the announcement of the new master nearly a second passes,
and the old one is told eight to ten seconds later. What comes before the promotion is announced as
well, by the leading sentinel alone: it names the replica one tick of its clock, 50 to 100 ms,
before it makes it the master.

Source: Redis, `sentinel.c`: `sentinelFailoverStateMachine`, `sentinelEvent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Place: TypeAlias = tuple[str, int]
"""Host and port, as a sentinel names them."""


@dataclass(frozen=True, slots=True)
class Failover:
    """Which replica is to take over from which master."""

    replica: Place
    master: Place


def failover_in(announcement: str, service: str) -> Failover | None:
    """Read `slave <name> <host> <port> @ <service> <host> <port>`.

    Returns:
        None when it is about another service, or in another form.
    """
    words = announcement.split(" ")
    if len(words) != 8 or (words[4], words[5]) != ("@", service):
        return None
    *_, host, port, _, _, master_host, master_port = words
    if not (port.isdecimal() and master_port.isdecimal()):
        return None
    return Failover((host, int(port)), (master_host, int(master_port)))
