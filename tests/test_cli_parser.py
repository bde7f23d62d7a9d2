from __future__ import annotations

import pytest

from aioredismq._cli_parser import WORKERS, parser, worker_parser


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("demo --messages -5", "must be a whole number from 1 to 1000000000, got '-5'"),
        ("demo --messages many", "got 'many'"),
        ("demo --producers 0", "from 1 to 100, got '0'"),
        ("demo --port 70000", "from 1 to 65535, got '70000'"),
        ("demo --fail 1.5", "must be a number, from 0 to 1, got '1.5'"),
        ("demo --fail nan", "got 'nan'"),
        ("demo --rate -1", "must be a number, 0 or more, got '-1'"),
        ("demo --rate inf", "got 'inf'"),
        ("demo --patience 0", "must be a number, more than 0, got '0'"),
        ("demo orders", "unrecognized arguments: orders"),
        ("consume", "required: QUEUE"),
        ("produce orders", "required: JSON"),
        ("frobnicate", "invalid choice: 'frobnicate'"),
        ("", "required: COMMAND"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    words: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the option, the rule and what was given, and where to read more; code 2."""
    with pytest.raises(SystemExit) as ending:
        parser().parse_args(words.split())

    told = capsys.readouterr()
    assert (ending.value.code, told.out) == (2, "")
    assert told.err.startswith("aioredismq: ")
    assert complaint in told.err
    assert told.err.endswith("--help`)\n")
    assert told.err.count("\n") == 1


def test_every_option_of_the_demo_says_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--help` explains each one, with what holds when it is not given."""
    with pytest.raises(SystemExit) as ending:
        parser().parse_args(["demo", "--help"])

    told = capsys.readouterr().out
    options = (
        told.partition("options:")[2].partition("Exit codes")[0].split("\n  --")[1:]
    )
    assert ending.value.code == 0
    assert len(options) == 12
    assert [
        text for text in options if "default" not in text and "`-`" not in text
    ] == []


def test_what_only_the_demo_starts_is_not_offered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its workers are no commands for people."""
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])

    told = capsys.readouterr().out
    assert "produce " in told
    assert not any(worker in told for worker in WORKERS)


@pytest.mark.parametrize("role", WORKERS)
def test_the_demo_can_start_its_workers(role: str) -> None:
    """Their options have what a worker needs."""
    options = worker_parser().parse_args([role, "--queue", "q", "--record-fd", "5"])

    assert (options.command, options.queue, options.record_fd) == (role, "q", 5)
