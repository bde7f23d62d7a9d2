from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq._demo_tally import Figures, Recorder, RecordFile, Tally

_NUMBERS = st.integers(0, 12)


@given(
    sent=st.lists(_NUMBERS, unique=True),
    handled=st.lists(_NUMBERS),
    dead=st.lists(_NUMBERS),
    stored=st.sets(_NUMBERS),
    found_dead=st.sets(_NUMBERS),
)
def test_the_figures_are_those_of_the_sets(
    sent: list[int],
    handled: list[int],
    dead: list[int],
    stored: set[int],
    found_dead: set[int],
) -> None:
    """A byte a message counts the same as sets of numbers would."""
    tally = Tally()
    tally.produced(sent)
    tally.settled(handled)
    tally.settled(~number for number in dead)
    tally.found(stored, found_dead)

    recorded = set(handled) | set(dead)
    settled = recorded | found_dead
    waiting = set(sent) - settled
    assert tally.figures() == Figures(
        produced=len(sent),
        handled=len(set(handled)),
        duplicates=sum(Counter(handled + dead).values()) - len(recorded),
        dead=len({*dead, *found_dead}),
        waiting=len(waiting),
        stored=len(waiting & stored),
        lost=len(waiting - stored),
        unconfirmed=len(settled - set(sent)),
    )


def test_records_are_read_as_they_come() -> None:
    """Each look brings what is new, negative numbers too, and counts them all."""
    records = RecordFile()
    recorder = Recorder(records.fd)

    seen = []
    for number in (0, ~5, 2**40):
        recorder.record(number)
        seen.append(list(records.read_new()))

    assert seen == [[0], [~5], [2**40]]
    assert (records.count, list(records.read_new())) == (3, [])
    records.close()


def test_half_a_record_waits_for_its_other_half() -> None:
    """A look in the middle of a write sees only what is whole."""
    records = RecordFile()
    number = (7).to_bytes(8, sys.byteorder)
    os.write(records.fd, number + number[:3])

    first = list(records.read_new())
    os.write(records.fd, number[3:])

    assert (first, list(records.read_new())) == ([7], [7])
    records.close()


def test_what_a_killed_process_recorded_is_there() -> None:
    """A record needs no farewell of its writer."""
    records = RecordFile()
    program = (
        "import os, signal, sys\n"
        "from aioredismq._demo_tally import Recorder\n"
        "Recorder(int(sys.argv[1])).record(41)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program, str(records.fd)],
        pass_fds=[records.fd],
        check=False,
    )

    assert (ended.returncode, list(records.read_new())) == (-9, [41])
    records.close()


def test_a_full_disk_is_an_error() -> None:
    """A record that cannot be written is not silently missing."""
    fd = os.open("/dev/full", os.O_WRONLY)

    with pytest.raises(OSError, match="No space left"):
        Recorder(fd).record(1)

    os.close(fd)
