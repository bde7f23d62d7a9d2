from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import hiredis
import pytest

from aioredismq import _scripts
from aioredismq._scripts import Script

if TYPE_CHECKING:
    from redis.asyncio import Redis

SCRIPTS = [value for value in vars(_scripts).values() if isinstance(value, Script)]


def read(command: bytes) -> list[bytes]:
    """Read a packed command as a server does."""
    reader = hiredis.Reader()
    reader.feed(command)
    parts: list[bytes] = reader.gets()
    return parts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
async def test_every_script_is_known_by_its_digest(
    client: Redis, script: Script
) -> None:
    """The server can read it, and would call it what we do."""
    told = await client.script_load(script.text.decode())

    assert told == script.digest.decode()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_fragments_a_script_asks_for_stand_in_front(script: Script) -> None:
    """Each once, so that what it calls is there."""
    text = script.text.decode()

    wanted = [
        line.split()[2] for line in text.splitlines() if line.startswith("-- with: ")
    ]
    for fragment in wanted:
        assert text.count(f"-- {fragment}: ") == 1
        assert text.index(f"-- {fragment}: ") < text.index(f"-- {script.name}: ")


def test_a_call_by_digest_names_its_keys() -> None:
    """A Cluster sends it where they are."""
    script = Script("s", b"return 1", b"d1ge5t")

    command = script.by_digest(["k1", "k2"], [b"\x00", "é", 3])

    assert read(command) == [
        b"EVALSHA", b"d1ge5t", b"2", b"k1", b"k2", b"\x00", "é".encode(), b"3",
    ]  # fmt: skip


def test_a_whole_call_carries_the_script() -> None:
    """For a server that has forgotten it, or never knew."""
    script = Script("s", b"return 1", b"d1ge5t")

    assert read(script.whole(["k"], [])) == [b"EVAL", b"return 1", b"1", b"k"]


def test_no_two_scripts_are_the_same() -> None:
    """Each is an operation of its own, under its own digest."""
    digests = {script.digest for script in SCRIPTS}

    assert len(digests) == len(SCRIPTS) > 5
    for script in SCRIPTS:
        digest = hashlib.sha1(script.text, usedforsecurity=False).hexdigest()
        assert script.digest == digest.encode()
