"""Latencies of the demo, measured in several processes and merged. Needs `hdrhistogram`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# From a microsecond to an hour, to one percent: 27 kB a process, however many messages.
_LEAST_US, _MOST_US, _DIGITS = 1, 3_600_000_000, 2

_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


def can_measure() -> bool:
    """Say whether `hdrhistogram` is installed."""
    return _new_histogram() is not None


class Latency:
    """Latencies of one process."""

    def __init__(self) -> None:
        """Begin with none; without `hdrhistogram` it stays at that."""
        self._histogram = _new_histogram()

    def record(self, nanoseconds: int) -> None:
        """Note one; what is below a microsecond or above an hour counts as that."""
        if self._histogram is not None:
            value = min(max(nanoseconds // 1000, _LEAST_US), _MOST_US)
            self._histogram.record_value(value)

    def encode(self) -> str:
        """Give all so far, for another process to merge; empty when there are none."""
        if self._histogram is None or not self._histogram.get_total_count():
            return ""
        encoded: bytes = self._histogram.encode()
        return encoded.decode()


def merge(encoded: Iterable[str]) -> Mapping[str, float] | None:
    """Merge what several processes encoded.

    Returns:
        Seconds by percentile (`p50` to `max`); None when nothing was measured.
    """
    histogram = _new_histogram()
    if histogram is None:
        return None
    for one in encoded:
        if one:
            histogram.decode_and_add(one)
    if not histogram.get_total_count():
        return None
    return {
        name: histogram.get_value_at_percentile(percentile) / 1e6
        for name, percentile in _PERCENTILES.items()
    }


def _new_histogram() -> Any | None:  # the package ships no types
    """Make an empty histogram, or None where the package is not installed."""
    try:
        from hdrh.histogram import HdrHistogram  # an extra
    except ImportError:
        return None
    return HdrHistogram(_LEAST_US, _MOST_US, _DIGITS)
