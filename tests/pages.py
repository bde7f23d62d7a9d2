"""The pages people read (`README.md`, `docs/`), taken apart into what can be run.

A page is a row of sections, one a heading. Of a section these are run, in order, on one server:

- `python` blocks. Each gets `orders`, a queue of that name, and `Order`, as in the quick start;
  names of earlier blocks of the section stay. A block with `asyncio.run(` is a program of its own.
- `redis` blocks: commands for `redis-cli`, one a line.
- `sh` blocks: of these, the lines that begin with `python -m aioredismq`.

A `text` block straight behind a `python` one is what it prints, line by line. A comment
`<!-- then: … -->` straight before one is Python that runs after it and no reader sees, such as
`await feed({"id": 1})`: run the block's handlers, and give them these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OURS = "python -m aioredismq "

_FENCE = re.compile(
    r"(?:^<!-- then:\s(?P<then>.*?)\s-->\n+)?"
    r"^```(?P<kind>\w+)\n(?P<text>.*?)^```\n"
    r"(?:\n^```text\n(?P<prints>.*?)^```\n)?",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """Something a reader may copy."""

    kind: Literal["python", "redis", "sh", "text"]
    text: str
    prints: list[str] | None
    then: str
    line: int
    """Where its text begins in the page."""

    @property
    def is_run(self) -> bool:
        """Whether there is anything to run in it."""
        if self.kind == "sh":
            return bool(re.search(rf"^{OURS}", self.text, flags=re.MULTILINE))
        return self.kind != "text"

    @property
    def is_program(self) -> bool:
        """Whether it is run as a file."""
        return "asyncio.run(" in self.text

    @property
    def goes_on(self) -> bool:
        """Whether it runs until it is stopped."""
        return bool(re.search(r"await (\w+\.)?(consume|run)\(", self.text))

    @property
    def fails_on_purpose(self) -> bool:
        """Whether a failure in the log is what it shows."""
        return bool(re.search(r"\braise |\.(retry|reject)\(|timeout=", self.text))


@dataclass(frozen=True)
class Section:
    """What stands under one heading."""

    page: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that is run."""
        return "\n".join(block.text for block in self.blocks)

    def __str__(self) -> str:
        return f"{self.page}: {self.title}"


def sections_of(path: Path, root: Path) -> list[Section]:
    """Take a page apart; sections without anything to run are left out."""
    text = path.read_text()
    sections = [Section(str(path.relative_to(root)), "the beginning")]
    parts: list[tuple[int, Block | str]] = [*_headings(text), *_blocks(text)]
    for _, found in sorted(parts, key=itemgetter(0)):
        if isinstance(found, str):
            sections.append(Section(sections[0].page, found))
        elif found.is_run:
            sections[-1].blocks.append(found)
    return [section for section in sections if section.blocks]


def _blocks(text: str) -> Iterator[tuple[int, Block]]:
    for found in _FENCE.finditer(text):
        prints = found["prints"]
        block = Block(
            found["kind"],  # type: ignore[arg-type]  # tested: `test_every_block_is_known`
            found["text"],
            None if prints is None else prints.splitlines(),
            found["then"] or "",
            text.count("\n", 0, found.start("text")) + 1,
        )
        yield found.start(), block


def _headings(text: str) -> Iterator[tuple[int, str]]:
    inside = [found.span() for found in _FENCE.finditer(text)]
    for found in re.finditer(r"^#+ (.+)$", text, flags=re.MULTILINE):
        if not any(start < found.start() < end for start, end in inside):
            yield found.start(), found[1]
