"""The servers to work against by hand: `compose.yaml`."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FILE = Path(__file__).parent.parent / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# What runs a server, as opposed to what only lends its network.
SERVERS = sorted(name for name in SERVICES if not name.endswith("-network"))

DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m)$"}
WORDS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
# The part of the Compose specification that the file uses. Anything else is a slip of the pen.
SERVICE = {
    "type": "object",
    "required": ["image", "command", "restart"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string", "pattern": r"^\$\{[A-Z_]+:-[a-z/]+:\d+\}$"},
        "command": WORDS,
        "restart": {"enum": ["unless-stopped"]},
        "init": {"type": "boolean"},
        "environment": {
            "type": "object",
            "properties": {"PORT": {"type": "integer"}},
            "required": ["PORT"],
            "additionalProperties": False,
        },
        "network_mode": {"type": "string", "pattern": r"^service:[a-z-]+$"},
        "ports": {**WORDS, "uniqueItems": True},
        "profiles": {"type": "array", "items": {"enum": ["sentinel", "cluster"]}},
        "volumes": {
            "type": "array",
            "items": {"type": "string", "pattern": r"^[a-z-]+:/data$"},
        },
        "depends_on": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["condition"],
                "additionalProperties": False,
                "properties": {
                    "condition": {"enum": ["service_started", "service_healthy"]}
                },
            },
        },
        "healthcheck": {
            "type": "object",
            "required": ["test", "interval", "timeout", "retries"],
            "additionalProperties": False,
            "properties": {
                "test": {
                    "type": "array",
                    "prefixItems": [{"const": "CMD-SHELL"}, {"type": "string"}],
                    "minItems": 2,
                    "maxItems": 2,
                },
                "interval": DURATION,
                "timeout": DURATION,
                "start_period": DURATION,
                "retries": {"type": "integer", "minimum": 1},
            },
        },
    },
}
WHOLE = {
    "type": "object",
    "required": ["name", "services", "volumes"],
    "additionalProperties": False,
    "patternProperties": {"^x-": {}},
    "properties": {
        "name": {"const": "aioredismq"},
        "services": {"type": "object", "additionalProperties": SERVICE},
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
    },
}


def compose() -> list[str] | None:
    """Find a docker compose that works; it needs no engine to check a file."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and subprocess.run(
                [*command, "version"], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return command
    return None


def profile_of(name: str) -> str | None:
    """Say which profile a service belongs to; None is what starts without one."""
    [profile] = SERVICES[name].get("profiles") or [None]
    return profile


def default(text: str) -> str:
    """Resolve `${NAME:-value}` as Compose does when the variable is unset."""
    return re.sub(r"\$\{[A-Z_]+:-(.*?)\}", r"\1", text)


def span(text: str) -> range:
    """Read a port or a range of ports."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def ports(name: str) -> list[tuple[str, range, range]]:
    """List what a service opens: the host's address and ports, and its own ports."""
    parts = [default(text).split(":") for text in SERVICES[name].get("ports", ())]
    return [
        (address, span(outside), span(inside)) for address, outside, inside in parts
    ]


def test_docker_takes_the_file() -> None:
    """As a whole, with every profile."""
    command = compose()
    if command is None:
        pytest.skip(
            "there is no docker compose that works; the other tests check the file"
        )

    checked = subprocess.run(
        [*command, "--file", FILE, "--profile", "*", "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_file_is_well_formed() -> None:
    """Every key is one Compose knows, with a value of its kind."""
    jsonschema.validate(COMPOSE, WHOLE)


def test_two_servers_start_without_a_profile() -> None:
    """Redis and Valkey; the Sentinel set and the Cluster are asked for."""
    assert [name for name in SERVICES if profile_of(name) is None] == [
        "redis",
        "valkey",
    ]
    assert {profile_of(name) for name in SERVICES} == {None, "sentinel", "cluster"}


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_is_asked_whether_it_is_well(name: str) -> None:
    """`up --wait` returns when all of them can be used."""
    question = SERVICES[name]["healthcheck"]["test"][1]

    assert re.match(
        r"(redis|valkey)-cli -p (\$\$PORT ping|7001 cluster info) \| grep -q \w+",
        question,
    )


@pytest.mark.parametrize("name", SERVICES)
def test_a_server_is_reached_from_this_machine_only(name: str) -> None:
    """None of them asks for a password."""
    assert {address for address, _, _ in ports(name)} <= {"127.0.0.1"}


def test_no_two_services_want_one_port() -> None:
    """All profiles can run at once."""
    wanted = Counter(
        port for name in SERVICES for _, outside, _ in ports(name) for port in outside
    )

    assert [port for port, count in wanted.items() if count > 1] == []


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "cluster"])
def test_every_server_listens_where_it_is_published(name: str) -> None:
    """On a port of its own, or of the service whose network it shares; the same outside."""
    port = SERVICES[name]["environment"]["PORT"]
    lender = (
        SERVICES[name].get("network_mode", f"service:{name}").removeprefix("service:")
    )

    assert any(port in inside for _, _, inside in ports(lender))
    # What clients are told of each other's addresses must be right outside, too.
    assert lender == name or all(
        inside == outside for _, outside, inside in ports(lender)
    )


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_needs_only_what_its_profile_starts(name: str) -> None:
    """Compose refuses a profile that leans on a service outside of it."""
    service = SERVICES[name]
    needed = set(service.get("depends_on", ()))
    if lender := service.get("network_mode"):
        needed.add(lender.removeprefix("service:"))

    assert needed <= set(SERVICES)
    assert {profile_of(other) for other in needed} <= {profile_of(name)}


def test_every_volume_is_declared_and_used() -> None:
    """Once by one service."""
    used = [
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
    ]

    assert sorted(used) == sorted(COMPOSE["volumes"])
