"""What this consumer holds: read and not settled, running or waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._message import Entry


class Held:
    """The ids of held entries, of the stream and of the group's lane."""

    __slots__ = ("_lane", "_stream")

    def __init__(self) -> None:
        """Nothing is held."""
        self._stream: set[bytes] = set()
        self._lane: set[bytes] = set()

    def add(self, entries: Sequence[Entry]) -> None:
        """Hold entries of one read: all of one source."""
        if entries:
            self._of(in_lane=entries[0].in_lane).update(entry.id for entry in entries)

    def drop(self, ids: Iterable[bytes], *, in_lane: bool) -> None:
        """Hold no more what was settled."""
        self._of(in_lane=in_lane).difference_update(ids)

    def has(self, entry_id: bytes, *, in_lane: bool) -> bool:
        """Say whether an id is held."""
        return entry_id in self._of(in_lane=in_lane)

    def __len__(self) -> int:
        return len(self._stream) + len(self._lane)

    def _of(self, *, in_lane: bool) -> set[bytes]:
        return self._lane if in_lane else self._stream
