"""What `README.md` and `docs/` show is run, on a real server, and prints what they say."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import logging
import re
import shlex
import signal
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

import aioredismq
from aioredismq import (
    Connection,
    ConsumerConfig,
    ExponentialBackoff,
    ProducerConfig,
    QueueConfig,
    RedisMessageQueue,
)
from aioredismq.testing import ClusterNodes, RedisServer, SentinelSet
from tests.pages import OURS, sections_of
from tests.programs import ROOT, Program, complaints
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.pages import Block, Section

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = [section for page in PAGES for section in sections_of(page, ROOT)]
LOCAL = "redis://localhost:6379/0"
LIMIT = 30.0

# Processes begin, one after the other, on a machine that may be busy.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def clean_server(server_path: Path | None) -> Iterator[RedisServer]:
    """A server where nobody else has queues: pages give theirs plain names."""
    with RedisServer(server_path) as running:
        yield running


@pytest.fixture
def urls(
    request: pytest.FixtureRequest, clean_server: RedisServer
) -> dict[re.Pattern[str], str]:
    """What stands in a page for a server, and the one it is run on."""
    clean_server.command("FLUSHALL")
    section: Section = request.node.callspec.params["section"]
    found = {re.compile(r"(?<=redis://)localhost:6379/0"): address(clean_server.url)}
    found[re.compile(r"(?<=@)localhost:6379/0")] = address(clean_server.url)
    if "redis+sentinel://" in section.text:
        watched: SentinelSet = request.getfixturevalue("sentinel")
        found[re.compile(r"redis\+sentinel://[^\"/]+/[\w/]+")] = watched.url
    if "redis://node-1" in section.text:
        nodes: ClusterNodes = request.getfixturevalue("cluster")
        found[re.compile(r"redis://node-1:\d+")] = nodes.url
    return found


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_what_a_page_shows_works(
    section: Section,
    urls: dict[re.Pattern[str], str],
    clean_server: RedisServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Block by block, as a reader would try it."""
    caplog.set_level(logging.WARNING)
    reader = Reader(clean_server, urls, tmp_path)
    try:
        for block in section.blocks:
            caplog.clear()
            reader.go_on(block)
            if not block.fails_on_purpose:
                assert not complaints(caplog.messages)
    except BaseException as error:
        error.add_note(f"in {section}, line {block.line}")
        raise
    finally:
        reader.close()


def test_every_block_is_known() -> None:
    """What is not run says so: `text`."""
    kinds = {block.kind for section in SECTIONS for block in section.blocks}

    assert kinds <= {"python", "redis", "sh"}
    assert len(SECTIONS) > 10


def test_every_setting_has_its_line() -> None:
    """Each once, in the order of the code, with the default it has there."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    lines = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", page, flags=re.MULTILINE)
    known = {"ExponentialBackoff": ExponentialBackoff}
    told = [(name, eval(default, known)) for name, default in lines]  # noqa: S307

    settings = []
    for owner in (QueueConfig, ProducerConfig, ConsumerConfig, ExponentialBackoff):
        default = owner()
        settings += [(item.name, getattr(default, item.name)) for item in fields(owner)]
    settings += [
        (name, parameter.default)
        for name, parameter in inspect.signature(Connection).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    assert told == settings


def test_the_permissions_are_those_the_scripts_need() -> None:
    """What the page grants and what is called in a script: nothing is missing."""
    page = (ROOT / "docs" / "running_in_production.md").read_text()
    scripts = Path(inspect.getfile(aioredismq)).parent.glob("lua/*.lua")
    called = {
        name.lower()
        for script in scripts
        for name in re.findall(r"redis\.p?call\(\s*'(\w+)'", script.read_text())
    }

    assert called
    assert called <= set(re.findall(r"\+(\w+)", page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files that are there, and headings in them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors_of(path), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_sentence_has_its_line(page: Path) -> None:
    """So that a change of a sentence is a change of a line."""
    prose = re.sub(
        r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    several = [
        line
        for line in prose.splitlines()
        if not line.startswith(("|", "<!--", "#")) and re.search(r"\D[.?!] [A-Z]", line)
    ]

    assert not several


def address(url: str) -> str:
    """Take the scheme off."""
    return url.partition("://")[2]


def anchors_of(page: Path) -> set[str]:
    """List the headings of a page as links name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    }


class Reader:
    """Somebody who tries what is on the page, one block after the other."""

    def __init__(
        self, server: RedisServer, urls: dict[re.Pattern[str], str], folder: Path
    ) -> None:
        """Open the page."""
        self._server = server
        self._urls = urls
        self._folder = folder
        self._module = sys.modules["page"] = ModuleType("page")
        self._names: dict[str, Any] = vars(self._module)
        # As the page says: `Order` is the quick start's.
        exec(_order(), self._names)  # noqa: S102 -- our own example
        self._names.update(
            asyncio=asyncio,
            eventually=eventually,
            feed=self._feed,
            is_busy=lambda _: False,
            is_settled=self._is_settled,
            redis=server.command,
            url=server.url,
        )

    def close(self) -> None:
        """Close it."""
        del sys.modules["page"]

    def go_on(self, block: Block) -> None:
        """Try the next block."""
        if block.kind == "redis":
            for line in block.text.splitlines():
                self._server.command(*shlex.split(line))
        elif block.kind == "sh":
            for line in block.text.splitlines():
                self._type(line)
        elif block.is_program:
            self._run_program(block)
        else:
            asyncio.run(self._run(block))

    def _type(self, line: str) -> None:
        """Run a line of a shell, if it is for our own command line."""
        if not line.startswith(OURS):
            return
        words = shlex.split(line)[1:]
        with Program(*words, env={"REDIS_URL": self._server.url}) as program:
            assert program.end() == 0

    def _local(self, text: str) -> str:
        """Put the servers of this run in the place of those of the page."""
        for stands, url in self._urls.items():
            text = stands.sub(url, text)
        return text

    def _run_program(self, block: Block) -> None:
        path = self._folder / "copied.py"
        path.write_text(self._local(block.text))
        with Program(path, env={"REDIS_URL": self._server.url}) as program:
            if block.goes_on:
                program.wait_for_lines(len(block.prints or ()))
                program.send(signal.SIGINT)
            assert program.end() == 0
        assert program.lines == (block.prints or [])

    async def _run(self, block: Block) -> None:
        self._names["orders"] = RedisMessageQueue("orders", self._server.url)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            running = asyncio.ensure_future(self._execute(block))
            if block.goes_on:
                expected = "\n".join(block.prints or ())
                await eventually(
                    lambda: running.done() or printed.getvalue().strip() == expected,
                    LIMIT,
                )
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
            else:
                await asyncio.wait_for(running, LIMIT)
        if block.prints is not None:
            assert printed.getvalue().splitlines() == block.prints

    async def _execute(self, block: Block) -> None:
        for text in (self._local(block.text), block.then):
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(text, "<page>", "exec", flags, dont_inherit=True)
            ended = eval(code, self._names)  # noqa: S307 -- our own page
            if inspect.iscoroutine(ended):
                await ended

    async def _feed(self, *bodies: object, **options: Any) -> None:
        """Run the handlers of the block and give them these, until all is settled."""
        queue: RedisMessageQueue = self._names["orders"]
        async with queue.consuming():
            for body in bodies:
                await queue.produce(body, **options)
            await eventually(self._is_settled, LIMIT)

    def _is_settled(self) -> bool:
        """Say whether nothing is stored but what has been put aside."""
        keys: Any = self._server.command("KEYS", "*")
        left = {key for key in keys if re.fullmatch(r"orders|.*:(lane|due):.*", key)}
        kinds = {key: self._server.command("TYPE", key) for key in left}
        return not any(
            self._server.command("XLEN" if kind == "stream" else "ZCARD", key)
            for key, kind in kinds.items()
        )


def _order() -> str:
    """Take the class `Order`, and what it needs, out of the quick start."""
    quickstart = (ROOT / "examples" / "quickstart.py").read_text()
    found = re.search(
        r"^@dataclass\n.*?\n\n\n", quickstart, flags=re.MULTILINE | re.DOTALL
    )
    assert found
    return f"from dataclasses import dataclass\n{found[0]}"
