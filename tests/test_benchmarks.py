"""The benchmarks run, count what they claim to, and write it down. How fast is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.programs import complaints

# Processes that start processes: a busy machine takes its time.
pytestmark = pytest.mark.timeout(300)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def start(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark as its user does."""
    return subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", *words],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def run(name: str, file: Path, url: str, *words: str) -> tuple[str, dict[str, Any]]:
    """Run a small benchmark on the server under test; return what it printed and wrote."""
    ended = start(name, "--url", url, "--rounds", "1", "--json", str(file), *words)
    assert (ended.returncode, complaints(ended.stderr.splitlines())) == (0, [])
    written: dict[str, Any] = json.loads(file.read_text())
    assert written["about"]["server"]["version"]
    assert url not in file.read_text()  # it may hold a password
    return ended.stdout, written


def test_throughput_compares_with_the_floors(tmp_path: Path, url: str) -> None:
    """Each rate is positive, and each target of the library has its ratio."""
    printed, written = run(
        "throughput", tmp_path / "figures.json", url, "--messages", "300"
    )

    assert all(rate["per_second"]["median"] > 0 for rate in written["rates"].values())
    targets = {one["of"]: one["median"] for one in written["ratios"] if one["target"]}
    assert set(targets) == {
        "produce, 256 tasks",
        "produce, one at a time",
        "drain, 64 handlers",
        "produce_many of 1000",
    }
    assert all(ratio > 0 for ratio in targets.values())
    assert all(name in printed for name in written["rates"])


def test_latency_has_every_rate_and_the_idle_consumers(
    tmp_path: Path, url: str
) -> None:
    """What was produced arrives, in both; an idle consumer's commands are counted by name."""
    pytest.importorskip("hdrh.histogram", reason="hdrhistogram measures latencies")
    short = ("--rates", "50", "200", "--seconds", "0.2", "--idle-seconds", "0.1")

    printed, written = run("latency", tmp_path / "figures.json", url, *short)

    handled = {name: one["handled"] for name, one in written["latencies"].items()}
    assert handled == {
        "50/s aioredismq": 10,
        "50/s redis-py": 10,
        "200/s aioredismq": 40,
        "200/s redis-py": 40,
    }
    assert set(written["idle"]) == {"aioredismq", "redis-py"}
    assert all(name in printed for name in handled)


def test_memory_has_both_processes_and_the_server(tmp_path: Path, url: str) -> None:
    """The resident sets are those of processes, and the server stores the bodies at least."""
    pytest.importorskip("psutil", reason="psutil measures memory")

    _, written = run("memory", tmp_path / "figures.json", url, "--messages", "400")

    for one in written["memory"].values():
        assert one["producer"]["resident_mb"]["median"] > 5
        assert one["consumer"]["resident_mb"]["median"] > 5
        assert one["consumer"]["growth_mb"]["low"] >= 0
        assert one["server_bytes_stored"]["median"] > 0


def test_recovery_times_a_kill_a_restart_and_what_is_due(
    tmp_path: Path, url: str
) -> None:
    """Nothing is found before its lease has run out, and nothing is handled before it is due."""
    short = (
        "--visibility",
        "3",
        "--messages",
        "3",
        "--due",
        "20",
        "--seconds",
        "0.3",
    )

    printed, written = run("recovery", tmp_path / "figures.json", url, *short)

    # A renewal may have been due just then, and late.
    assert written["kill"]["seconds"]["median"] > 0.5
    assert written["restart"]["seconds"]["median"] > 0
    assert written["due"]["messages"] == 20
    assert written["due"]["late_ms"]["p50"] > -2
    assert "visibility timeout 3 s" in printed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--rounds", "0"], "--rounds: must be a whole number, at least 1, got '0'"),
        (["--messages", "x"], "--messages: must be a whole number, at least 1"),
        (["--url", "redis://127.0.0.1:1"], "connect"),
        (["--server", "/nowhere/redis-server"], "cannot start /nowhere/redis-server"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, words: list[str], complaint: str
) -> None:
    """No traceback for a slip at the command line."""
    ended = start("throughput", "--json", str(tmp_path / "figures.json"), *words)

    assert ended.returncode != 0
    assert complaint in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_unwritable_file_is_refused_before_measuring(tmp_path: Path) -> None:
    """Better than after some minutes."""
    ended = start("throughput", "--json", str(tmp_path))

    assert (ended.returncode, ended.stdout) == (1, "")
    assert str(tmp_path) in ended.stderr
