from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from aioredismq.testing import _reaper
from aioredismq.testing._reaper import Reaper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# Seconds until a process that was sent a signal has surely ended.
_LIMIT = 30.0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own that would outlive the test."""
    with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


def abandon(reaper: Reaper, watched: subprocess.Popen[bytes]) -> None:
    """Do what the end of this process would do, and wait until the shell has done its part.

    A process it has killed may still be about to end: the signal is on its way.
    """
    reaper._pipe.close()
    while reaper._shell.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            watched.wait(0.01)  # its new parent would take note of its end, too


def test_an_abandoned_process_is_ended_and_its_directory_removed(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """When the pipe closes without a farewell, both go."""
    directory = tmp_path / "data"
    directory.mkdir()
    reaper = Reaper(directory)
    reaper.watch(sleeper.pid)

    abandon(reaper, sleeper)

    assert sleeper.wait(_LIMIT) == -signal.SIGTERM
    assert not directory.exists()


def test_a_stopped_process_is_ended_too(sleeper: subprocess.Popen[bytes]) -> None:
    """A server that a test has paused does not stay behind."""
    os.kill(sleeper.pid, signal.SIGSTOP)
    reaper = Reaper(None)
    reaper.watch(sleeper.pid)

    abandon(reaper, sleeper)

    assert sleeper.wait(_LIMIT) == -signal.SIGTERM


def test_a_process_that_will_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ignoring the polite signal does not help."""
    monkeypatch.setattr(
        _reaper, "_SCRIPT", _reaper._SCRIPT.replace("tries=50", "tries=2")
    )
    with subprocess.Popen(
        ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        reaper = Reaper(None)
        reaper.watch(stubborn.pid)

        abandon(reaper, stubborn)

        assert stubborn.wait(_LIMIT) == -signal.SIGKILL


def test_a_dismissed_reaper_touches_nothing(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Whoever says goodbye cleans up himself."""
    reaper = Reaper(tmp_path)
    reaper.watch(sleeper.pid)

    reaper.dismiss()

    assert sleeper.poll() is None
    assert tmp_path.exists()


def test_a_forgotten_process_is_not_ended(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """The number of a process that has ended may belong to another by now."""
    directory = tmp_path / "data"
    directory.mkdir()
    reaper = Reaper(directory)
    reaper.watch(sleeper.pid)
    reaper.forget()

    abandon(reaper, sleeper)

    assert sleeper.poll() is None
    assert not directory.exists()


def test_a_reaper_that_was_killed_is_no_trouble() -> None:
    """Telling it something afterwards raises nothing."""
    reaper = Reaper(None)
    reaper._shell.kill()
    reaper._shell.wait()

    reaper.watch(1)
    reaper.dismiss()
