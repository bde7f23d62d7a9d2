from __future__ import annotations

import sys

import pytest

from aioredismq._demo_latency import Latency, can_measure, merge


def test_what_several_processes_measured_becomes_one() -> None:
    """Percentiles are those of all values together, to one percent."""
    first, second = Latency(), Latency()
    for ms in range(1, 51):
        first.record(ms * 1_000_000)
    for ms in range(51, 101):
        second.record(ms * 1_000_000)

    latency = merge([first.encode(), second.encode(), ""])

    assert can_measure()
    assert latency == pytest.approx(
        {"p50": 0.050, "p90": 0.090, "p99": 0.099, "p99.9": 0.1, "max": 0.1}, rel=0.01
    )


@pytest.mark.parametrize(("nanoseconds", "seconds"), [(-5, 1e-6), (10**16, 3600.0)])
def test_what_is_out_of_range_counts_as_the_bound(
    nanoseconds: int, seconds: float
) -> None:
    """A clock that steps back, or a day's pause, is still a value."""
    latency = Latency()

    latency.record(nanoseconds)

    merged = merge([latency.encode()])
    assert merged is not None
    assert merged["max"] == pytest.approx(seconds, rel=0.01)


def test_nothing_measured_is_none() -> None:
    """No value is not the same as zero."""
    assert merge([Latency().encode()]) is None


def test_without_the_package_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is an extra: without it all else works."""
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    latency = Latency()

    latency.record(1_000_000)

    assert not can_measure()
    assert latency.encode() == ""
    assert merge(["whatever"]) is None
