"""What this consumer holds: read and not settled, running or waiting; and since when."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._clock import elapsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ._message import Entry


class Held:
    """The ids of held entries, of the stream and of the group's lane, and when each was renewed.

    Times are seconds by `elapsed`.
    """

    __slots__ = ("_lane", "_lease", "_lookers", "_lost", "_stream", "sound_until")

    def __init__(self, lease: float = math.inf) -> None:
        """Nothing is held; a lease lasts so many seconds, if it is not renewed."""
        self._lease = lease
        self._stream: dict[bytes, float] = {}
        self._lane: dict[bytes, float] = {}
        self._lookers: list[set[tuple[bytes, bool]]] = []
        self._lost: set[tuple[bytes, bool]] = set()
        self.sound_until = 0.0
        """Until when nothing held can have become somebody else's unseen, by `elapsed`."""

    def add(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Hold entries of one read: all of one source.

        Returns:
            Those not held before. What is held already, and comes again, was lost meanwhile and is
            this consumer's again: its handler still runs, and settles it.
        """
        if not entries:
            return entries
        in_lane = entries[0].in_lane
        held = self._of(in_lane=in_lane)
        ids = [entry.id for entry in entries]
        if not held.keys().isdisjoint(ids):
            entries = [entry for entry in entries if entry.id not in held]
            self._lost.difference_update((entry_id, in_lane) for entry_id in ids)
        held.update(dict.fromkeys(ids, elapsed()))
        return entries

    def note_asked(self, asked: float) -> None:
        """Note, before it is added, that what has come was asked for then.

        Redis may have handed it out at once, and the answer waited here while the process stood
        still: its lease may have run out before anybody has seen it.
        """
        self.sound_until = min(self.sound_until, asked + self._lease)

    def lose(self, entry_id: bytes, *, in_lane: bool) -> bool:
        """Note that a held entry is somebody else's now; False when that was known."""
        known = (entry_id, in_lane) in self._lost
        self._lost.add((entry_id, in_lane))
        return not known

    def renewed(self, ids: Iterable[bytes], when: float, *, in_lane: bool) -> None:
        """Note that leases were renewed; `when` is the time before the server was asked."""
        held = self._of(in_lane=in_lane)
        for entry_id in ids:
            if entry_id in held:
                held[entry_id] = when

    def drop(self, ids: Sequence[bytes], *, in_lane: bool) -> None:
        """Hold no more what was settled."""
        held = self._of(in_lane=in_lane)
        for entry_id in ids:
            held.pop(entry_id, None)
        if self._lost:
            self._lost.difference_update((entry_id, in_lane) for entry_id in ids)
        for seen in self._lookers:
            seen.update((entry_id, in_lane) for entry_id in ids)

    @contextmanager
    def looking(self, *, in_lane: bool) -> Iterator[Callable[[bytes], bool]]:
        """Tell, in the block, of each id whether it is held, or was when the block began or since.

        For who asks Redis what is pending: an entry may be settled after Redis has looked and
        before its answer is read, and is not one to handle then.
        """
        settled: set[tuple[bytes, bool]] = set()
        held = self._of(in_lane=in_lane)
        self._lookers.append(settled)
        try:
            yield lambda entry_id: entry_id in held or (entry_id, in_lane) in settled
        finally:
            self._lookers = [one for one in self._lookers if one is not settled]

    def has(self, entry_id: bytes, *, in_lane: bool) -> bool:
        """Say whether an id is held."""
        return entry_id in self._of(in_lane=in_lane)

    def renewed_at(self, entry_id: bytes, *, in_lane: bool) -> float | None:
        """Say when a lease was renewed last; None when it is not held, or lost."""
        if (entry_id, in_lane) in self._lost:
            return None
        return self._of(in_lane=in_lane).get(entry_id)

    def ids(self, *, in_lane: bool) -> list[bytes]:
        """List the held ids of one source, ascending."""
        return sorted(self._of(in_lane=in_lane), key=_order)

    def __len__(self) -> int:
        return len(self._stream) + len(self._lane)

    def _of(self, *, in_lane: bool) -> dict[bytes, float]:
        return self._lane if in_lane else self._stream


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)
