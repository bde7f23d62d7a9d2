from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest

from aioredismq._demo_server import Leftovers
from aioredismq._demo_summary import Summary
from aioredismq._demo_tally import Figures

_EMPTY = Leftovers(
    length=0,
    returned=0,
    pending=0,
    dead=0,
    waiting_numbers=frozenset(),
    dead_numbers=frozenset(),
)
_GOOD = Summary(
    queue="demo-1",
    server="redis-7.0.15 on port 1",
    ordered=10,
    bad_lines=0,
    figures=Figures(produced=10, handled=10),
    leftovers=_EMPTY,
    seconds=2.0,
    latency={"p50": 0.001},
    workers=[
        ("producer 1", "done", 10),
        ("consumer 1", "done", 6),
        ("consumer 2", "done", 4),
    ],
    failed_workers=0,
    trouble="",
    signal_number=None,
)


def test_a_good_run_says_so() -> None:
    """Every message counted: code 0, and the last line says it."""
    text = _GOOD.text()

    assert _GOOD.exit_code == 0
    assert text.splitlines()[-1] == "All 10 messages are accounted for; none is lost."
    assert "by 2 processes: 6 + 4" in text
    assert "5  handled per second, 2.0 s" in text


def test_dead_letters_are_accounted_for() -> None:
    """Put aside with a reason is not lost."""
    run = replace(
        _GOOD,
        figures=Figures(produced=10, handled=7, dead=3),
        leftovers=replace(_EMPTY, dead=3),
    )

    assert run.exit_code == 0
    assert "3 of them as dead letters" in run.text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"figures": Figures(produced=10, handled=9, waiting=1, lost=1)}, "1 lost"),
        (
            {"figures": Figures(produced=10, handled=8, waiting=2, stored=2)},
            "2 still in the queue",
        ),
        ({"figures": Figures(produced=9, handled=9)}, "1 not sent"),
        (
            {"failed_workers": 2},
            "All 10 messages are accounted for, although 2 process(es) failed.",
        ),
        (
            {
                "trouble": "no progress for 10 s",
                "figures": Figures(produced=10, handled=9, waiting=1, stored=1),
            },
            "Not good: no progress for 10 s; 1 still in the queue.",
        ),
        ({"leftovers": None}, "it did not answer"),
        ({"leftovers": None}, "Not good: see above."),
        ({"leftovers": replace(_EMPTY, pending=4)}, "4 pending"),
        ({"ordered": 0, "figures": Figures(), "bad_lines": 5}, "bad lines"),
        (
            {"figures": Figures(produced=9, handled=10, unconfirmed=1)},
            "did not live to hear",
        ),
    ],
)
def test_what_is_not_good_is_named(changes: dict[str, object], words: str) -> None:
    """Whatever is missing makes it code 1, and is there to be read."""
    run = replace(_GOOD, **changes)  # type: ignore[arg-type]

    assert run.exit_code == 1
    assert words in run.text()


def test_dead_letters_the_server_does_not_have_are_named() -> None:
    """What the workers recorded and what the server has are compared."""
    run = replace(_GOOD, figures=Figures(produced=10, handled=9, dead=1))

    assert "recorded; the server has 0" in run.text()


def test_a_signal_decides_the_code() -> None:
    """Stopped by the user is neither good nor bad; what is missing is said."""
    run = replace(
        _GOOD,
        signal_number=signal.SIGINT,
        figures=Figures(produced=8, handled=5, waiting=3, stored=3),
    )

    assert run.exit_code == 130
    assert run.text().splitlines()[-1] == (
        "Stopped by SIGINT: 2 not sent, 3 still in the queue."
    )


def test_bad_lines_alone_do_not_make_a_run_bad() -> None:
    """They are named, and the rest went on."""
    run = replace(_GOOD, bad_lines=2)

    assert run.exit_code == 0
    assert "bad lines            2" in run.text()


def test_the_report_has_what_the_text_has() -> None:
    """It is JSON, for programs."""
    report = json.loads(_GOOD.report())

    assert (report["produced"], report["handled"], report["lost"]) == (10, 10, 0)
    assert report["on_server"] == {"length": 0, "returned": 0, "pending": 0, "dead": 0}
    assert report["workers"][0] == {"name": "producer 1", "state": "done", "count": 10}
    assert report["exit_code"] == 0
    assert json.loads(replace(_GOOD, leftovers=None).report())["on_server"] is None
