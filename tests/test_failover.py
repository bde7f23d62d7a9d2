from __future__ import annotations

import pytest

from aioredismq._failover import Failover, failover_in


@pytest.mark.parametrize(
    ("announcement", "failover"),
    [
        (
            "slave 10.0.0.2:6380 10.0.0.2 6380 @ orders 10.0.0.1 6379",
            Failover(("10.0.0.2", 6380), ("10.0.0.1", 6379)),
        ),
        (
            "slave [::2]:6379 ::2 6379 @ orders ::1 6379",
            Failover(("::2", 6379), ("::1", 6379)),
        ),
        (
            "slave redis-2:6379 redis-2 6379 @ orders redis-1 6379",
            Failover(("redis-2", 6379), ("redis-1", 6379)),
        ),
        ("slave 10.0.0.2:6380 10.0.0.2 6380 @ others 10.0.0.1 6379", None),
        ("slave 10.0.0.2:6380 10.0.0.2 6380 @ orders 10.0.0.1", None),
        ("slave 10.0.0.2:6380 10.0.0.2 port @ orders 10.0.0.1 6379", None),
        ("slave 10.0.0.2:6380 10.0.0.2 6380 @ orders 10.0.0.1 port", None),
        ("master orders 10.0.0.1 6379", None),
        ("orders", None),
        ("", None),
    ],
)
def test_an_announcement_names_the_replica_and_its_master(
    announcement: str, failover: Failover | None
) -> None:
    """Whatever else is said on the channel is no failover of ours."""
    assert failover_in(announcement, "orders") == failover
