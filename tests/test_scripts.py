from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import hiredis
import pytest

from aioredismq import PermissionDeniedError, _scripts
from aioredismq._errors import server_error
from aioredismq._scripts import Script, reply_error

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


# What a script was denied.

DENIED = "The user executing the script can't run this command or subcommand"
APPEND = _scripts.APPEND.digest.decode()


def line_of(call: str) -> int:
    """Find where `append` calls a command."""
    lines = _scripts.APPEND.text.decode().split("\n")
    return next(number for number, line in enumerate(lines, 1) if f"'{call}'" in line)


@pytest.mark.parametrize(
    "text",
    [
        "NOPERM User u has no permissions to run the 'xadd' command",
        "ERR ACL failure in script: User u has no permissions to run the 'xadd' command "
        f"script: {APPEND}, on @user_script:27.",
        "ERR ACL failure in script: User u has no permissions to run the 'xadd' command "
        "script: on @user_script:1.",
        f"ERR {DENIED} script: {APPEND}, on @user_script:{line_of('XADD')}.",
        f"ERR Error running script (call to f_{APPEND}): @user_script:{line_of('XADD')}: "
        f"@user_script: {line_of('XADD')}: {DENIED}",
    ],
    ids=["outside", "Redis 8", "Valkey 9", "Redis 7", "Redis 6"],
)
def test_a_denied_command_is_named_on_every_server(text: str) -> None:
    """Older ones say where in the script it stands, and nothing else."""
    error = reply_error(text)

    assert type(error) is PermissionDeniedError
    assert error.code == "NOPERM"
    assert "'xadd'" in str(error)
    assert "user_script" not in str(error)


def test_a_subcommand_is_named_with_its_command() -> None:
    """As it is allowed in an ACL."""
    lines = _scripts.FORGET_CONSUMER.text.decode().split("\n")
    at = next(number for number, line in enumerate(lines, 1) if "'DELCONSUMER'" in line)
    digest = _scripts.FORGET_CONSUMER.digest.decode()

    error = reply_error(f"ERR {DENIED} script: {digest}, on @user_script:{at}.")

    assert "'xgroup delconsumer', which forget_consumer needs" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        f"ERR {DENIED}",
        f"@user_script: 1: {DENIED}",
        f"ERR {DENIED} script: {'0' * 40}, on @user_script:1.",
    ],
)
def test_where_it_cannot_be_known_the_way_to_find_out_is_named(text: str) -> None:
    """A script passed the error on, or it is none of ours."""
    error = reply_error(text)

    assert type(error) is PermissionDeniedError
    assert str(error).endswith("(`ACL LOG` on the server says which)")


@pytest.mark.parametrize(
    "text",
    [
        "ERR The user executing the script can't access at least one of the keys mentioned "
        f"in the command arguments script: {APPEND}, on @user_script:1.",
        f"ERR ACL failure in script: No permissions to access a key script: {APPEND}, on "
        "@user_script:1.",
    ],
)
def test_a_denied_key_is_a_denial_too(text: str) -> None:
    """Keys are no commands: nothing is named."""
    error = reply_error(text)

    assert type(error) is PermissionDeniedError
    assert "which append needs" not in str(error)
    assert "ACL LOG" not in str(error)


@pytest.mark.parametrize("text", ["OOM command not allowed", "NOGROUP No such key"])
def test_any_other_error_is_what_it_was(text: str) -> None:
    """Of the same class, with the same words."""
    error = reply_error(text)

    assert (type(error), str(error)) == (type(server_error(text)), text)
