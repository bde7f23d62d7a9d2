"""Counts what the processes of the demo recorded, message by message. Nothing is assumed.

Every message has a number. A producer records it when `produce` has returned, a consumer when
its handler ends or when the message has failed for good; each record is written to a file at
once, so that it outlives its process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# What is known of one message; all known of all messages is a byte each.
_PRODUCED, _HANDLED, _DEAD, _STORED = 1, 2, 4, 8
_SETTLED = _HANDLED | _DEAD
_STATES = range(16)

_NUMBER = array("q")
_READ = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Figures:
    """What was counted.

    Attributes:
        produced: Confirmed to the producer.
        handled: Handled at least once.
        duplicates: Times a message was handled, or put aside, once more.
        dead: Put aside as dead letters.
        waiting: Confirmed, and neither handled nor put aside.
        stored: Of these, still found in the queue.
        lost: Of these, found nowhere.
        unconfirmed: Handled or put aside, though no producer lived to say that it was sent.
    """

    produced: int = 0
    handled: int = 0
    duplicates: int = 0
    dead: int = 0
    waiting: int = 0
    stored: int = 0
    lost: int = 0
    unconfirmed: int = 0


class Tally:
    """Knows of each message what has been recorded."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._states = bytearray()
        self._duplicates = 0

    def produced(self, numbers: Iterable[int]) -> None:
        """Note what a producer recorded."""
        for number in numbers:
            self._mark(number, _PRODUCED)

    def settled(self, records: Iterable[int]) -> None:
        """Note what a consumer recorded: a message's number, or its complement for a dead one."""
        for record in records:
            number, what = (record, _HANDLED) if record >= 0 else (~record, _DEAD)
            if self._mark(number, what) & _SETTLED:
                self._duplicates += 1

    def found(self, waiting: Iterable[int], dead: Iterable[int]) -> None:
        """Note what the server has at the end: in the queue, and among the dead letters."""
        for number in waiting:
            self._mark(number, _STORED)
        for number in dead:
            self._mark(number, _DEAD)

    def figures(self) -> Figures:
        """Count."""
        counts = [self._states.count(state) for state in _STATES]

        def having(mask: int, *, but: int = 0) -> int:
            return sum(
                counts[state]
                for state in _STATES
                if state & mask == mask and not state & but
            )

        settled = sum(counts[state] for state in _STATES if state & _SETTLED)
        waiting = having(_PRODUCED, but=_SETTLED)
        confirmed = having(_PRODUCED)
        return Figures(
            produced=confirmed,
            handled=having(_HANDLED),
            duplicates=self._duplicates,
            dead=having(_DEAD),
            waiting=waiting,
            stored=having(_PRODUCED | _STORED, but=_SETTLED),
            lost=having(_PRODUCED, but=_SETTLED | _STORED),
            unconfirmed=settled - (confirmed - waiting),
        )

    def _mark(self, number: int, what: int) -> int:
        """Add what is known of a message; returns what was known before."""
        missing = number + 1 - len(self._states)
        if missing > 0:
            self._states.extend(bytes(missing))
        before = self._states[number]
        self._states[number] = before | what
        return before


class RecordFile:
    """Numbers one process writes and another reads, in a file without a name.

    It has no name, so that nothing is left behind however the processes end; and it is no pipe,
    so that a writer never waits, and what it wrote stays when it is killed.
    """

    def __init__(self) -> None:
        """Make it, empty."""
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 -- closed by close()
        self._position = 0

    @property
    def fd(self) -> int:
        """Descriptor for the writer to inherit."""
        return self._file.fileno()

    @property
    def count(self) -> int:
        """Numbers read so far."""
        return self._position // _NUMBER.itemsize

    def read_new(self) -> array[int]:
        """Return what was written since the last call."""
        numbers: array[int] = array(_NUMBER.typecode)
        # pread: the writer shares the file's own position.
        while block := os.pread(self.fd, _READ, self._position):
            whole = len(block) - len(block) % numbers.itemsize
            if not whole:
                break
            numbers.frombytes(block[:whole])
            self._position += whole
        return numbers

    def close(self) -> None:
        """Give it up."""
        self._file.close()


class Recorder:
    """Writes numbers to a `RecordFile`, each at once."""

    def __init__(self, fd: int) -> None:
        """Write to an inherited descriptor."""
        self._fd = fd

    def record(self, number: int) -> None:
        """Write one number.

        Raises:
            OSError: The disk is full.
        """
        os.write(
            self._fd, number.to_bytes(_NUMBER.itemsize, sys.byteorder, signed=True)
        )
