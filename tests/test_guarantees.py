"""`docs/guarantees.md` names tests: they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
# What the page must have an answer to.
QUESTIONS = [
    "a handler raises",
    "a handler hangs",
    "a process is killed",
    "a message kills its process",
    "a handler is slow",
    "Redis restarts",
    "Redis fails over, or a slot moves",
    "somebody flushes",
    "memory is full",
    "a process is told to go",
    "a message is sent twice",
]


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_test_that_is_named_is_there(file: str, test: str) -> None:
    """A guarantee whose test was renamed or removed would be a claim again."""
    assert re.search(
        rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE
    )


def test_every_line_of_a_table_names_its_test() -> None:
    """Nothing is promised there without one."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    promises = [line for line in lines if not line.startswith("| what happens")]

    assert len(promises) > 30
    assert not [line for line in promises if "::test_" not in line]


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_has_its_answer(question: str) -> None:
    """Those people have before they choose a queue."""
    assert f"\n### {question}" in PAGE
