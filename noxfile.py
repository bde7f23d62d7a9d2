"""What a change must pass. `nox` runs what the hosted workflow runs; `nox -l` lists it."""

from __future__ import annotations

import re
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.sessions = ["lint", "typing", "tests", "servers", "coverage"]
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)  # the classifiers
EXTRAS = ".[embedded,demo]"
API = Path("tests/typing/api.py")
CHAOS_SERVERS = "redis-6.2,redis-7.0,redis-8.6,valkey-9"


def group(name: str) -> list[str]:
    """List what a dependency group of `pyproject.toml` installs."""
    return list(nox.project.dependency_groups(PROJECT, name))


def lowest(folder: str) -> str:
    """Write the lower bounds of the package's own dependencies as constraints for pip."""
    bounds = [
        re.sub(r"^([\w-]+)(\[.*?\])?>=", r"\1==", need)
        for need in PROJECT["project"]["dependencies"]
    ]
    file = Path(folder, "lowest.txt")
    file.write_text("\n".join(bounds))
    return str(file)


@nox.session
def lint(session: nox.Session) -> None:
    """Look at form: formatting, lint rules, the floors of the house, spelling."""
    session.install(*group("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "src"})
    session.run("codespell")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types inside, and that everything public has them for users."""
    session.install("-e", EXTRAS, *group("typing"))
    session.run("mypy")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "aioredismq")
    if API.exists():
        session.run("mypy", str(API))
        session.run("pyright", str(API))


# The lowest versions on the oldest Python only: newer ones have no wheels of those.
@nox.session(python=PYTHONS)
@nox.parametrize("dependencies", ["highest", "lowest"])
def tests(session: nox.Session, dependencies: str) -> None:
    """Run the suite on the built wheel, on one server."""
    if dependencies == "lowest":
        if session.python != PYTHONS[0]:
            session.skip(f"the lowest versions are tested on Python {PYTHONS[0]}")
        session.install("-c", lowest(session.create_tmp()), EXTRAS, *group("test"))
    else:
        session.install(EXTRAS, *group("test"))
    session.run("coverage", "run", "-m", "pytest", *session.posargs)


@nox.session
def servers(session: nox.Session) -> None:
    """Run the suite on every server found, each also in a Cluster and behind Sentinel."""
    session.install(EXTRAS, *group("test"))
    chosen = session.posargs or ["--servers", "all", "--loop", "asyncio"]
    session.run("pytest", *chosen)


@nox.session
def chaos(session: nox.Session) -> None:
    """Break everything, with many seeds and for minutes, on the oldest and newest servers.

    The promises themselves are kept there too, each also in a Cluster and behind Sentinel.
    """
    session.install(EXTRAS, *group("test"))
    chosen = session.posargs or ["--servers", CHAOS_SERVERS, "--seeds", "20"]
    lengths = ("--long", "--soak", "60", "--outage", "120")
    session.run("pytest", "tests/chaos", "tests/contract", *lengths, *chosen)


@nox.session
def soak(session: nox.Session) -> None:
    """Break things at random for ten minutes: memory, connections, names and keys stay flat."""
    session.install(EXTRAS, *group("test"))
    session.run("pytest", "tests/chaos/test_soak.py", "--soak", "600", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Say what the `tests` sessions did not run; fail below the gate."""
    session.install("coverage")
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure, into `benchmarks/results/`."""
    session.install(EXTRAS, *group("bench"))
    for name in ("throughput", "latency", "memory", "recovery"):
        session.run("python", f"benchmarks/{name}.py", *session.posargs)
