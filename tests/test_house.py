"""What keeps the house in order and no linter knows."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

import aioredismq
import aioredismq.testing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
# Where the package really is: beside the tests, or installed from a wheel.
PACKAGE = Path(inspect.getfile(aioredismq)).parent
DOORS = [aioredismq, aioredismq.testing]
ROOMS = sorted(
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob("*.py")
    if not path.name.startswith("__")
)
SCRIPTS = sorted(path.stem for path in (PACKAGE / "lua").glob("*.lua"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()


def test_there_is_a_house() -> None:
    """The checks below walk what they find, so something must be found."""
    assert "_errors.py" in ROOMS
    assert SCRIPTS


# The doors.


def is_public(name: str, value: object) -> bool:
    """Say whether a module attribute is what users are meant to import."""
    is_name = not name.startswith("_") and value is not annotations
    return is_name and not isinstance(value, ModuleType)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_what_can_be_imported_is_what_is_listed(door: ModuleType) -> None:
    """`__all__` is sorted, and nothing public is missing from it or only in it."""
    assert door.__all__ == sorted(door.__all__)
    assert set(door.__all__) == {
        name for name, value in vars(door).items() if is_public(name, value)
    }


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_no_traceback_shows_a_private_room(door: ModuleType) -> None:
    """What is public says that it lives where it is imported from."""
    elsewhere = {
        name: value.__module__
        for name in door.__all__
        if (value := getattr(door, name)).__class__ is not str
        and getattr(value, "__module__", door.__name__) != door.__name__
    }

    assert not elsewhere


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_what_is_public_is_used_as_a_type_checker_sees_it(door: ModuleType) -> None:
    """A changed signature shows in `tests/typing/api.py` before it shows at a user's."""
    tree = ast.parse((ROOT / "tests" / "typing" / "api.py").read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    assert not set(door.__all__) - used


def own_members(owner: type) -> Iterator[tuple[str, object]]:
    """List the public methods and properties a class defines itself."""
    for name, value in vars(owner).items():
        method = (
            value.__func__ if isinstance(value, classmethod | staticmethod) else value
        )
        if not name.startswith("_") and (
            inspect.isfunction(method) or isinstance(method, property)
        ):
            yield name, method


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_what_is_public_is_documented(door: ModuleType) -> None:
    """Linters do not ask for docstrings in rooms whose names begin with an underscore."""
    silent = []
    for name in door.__all__:
        value = getattr(door, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        # A dataclass without a docstring is given its signature as one.
        if not value.__doc__ or value.__doc__.startswith(f"{name}("):
            silent.append(name)
        if inspect.isclass(value):
            silent += [
                f"{name}.{member}"
                for member, method in own_members(value)
                if not method.__doc__
            ]

    assert not silent


# The rooms.


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_its_test(room: str) -> None:
    """`_settler.py` is covered by `test_settler.py`, alone and wholly."""
    test = Path("tests", room).with_name(f"test{Path(room).name}")

    assert (ROOT / test).exists(), f"{test} is missing"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_can_be_read_in_one_go(room: str) -> None:
    """Past 400 lines it holds more than one thing."""
    assert len((PACKAGE / room).read_text().splitlines()) <= 400


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_lives_there(room: str) -> None:
    """The docstring of the module is what a newcomer reads first."""
    assert ast.get_docstring(ast.parse((PACKAGE / room).read_text()))


def test_no_task_is_left_to_itself() -> None:
    """Only the host makes tasks outside a task group."""
    makers = {
        room
        for room in ROOMS
        for node in ast.walk(ast.parse((PACKAGE / room).read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in {"create_task", "ensure_future"}
        and isinstance(node.value, ast.Name)
        and node.value.id in {"asyncio", "loop"}
    }

    assert makers <= {"_host.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_exception_to_a_rule_has_its_reason(room: str) -> None:
    """A linter, a type checker or the coverage is told to look away for a reason given there."""
    lines = (PACKAGE / room).read_text().splitlines()
    bare = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(lines, start=1)
        if (told := re.search(r"#\s*(noqa|type: ignore|pyright: ignore|pragma:)", line))
        and not re.search(r" -- |#", line[told.end() :])
        and not lines[number - 2].lstrip().startswith("#")
    ]

    assert not bare


# The settings.


def test_every_setting_is_explained() -> None:
    """Each field of a configuration has its docstring: unit, reason, default's reason."""
    tree = ast.parse((PACKAGE / "_config.py").read_text())
    classes = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
    ]
    silent = [
        f"{owner.name}.{ast.unparse(field.target)}"
        for owner in classes
        for field, after in zip(owner.body, [*owner.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign)
        and not (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        )
    ]

    assert classes
    assert not silent


# The scripts.


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_begins_with_its_contract(script: str) -> None:
    """What it does, its keys and arguments, and what it returns, unless others include it."""
    text = (PACKAGE / "lua" / f"{script}.lua").read_text()
    head = re.match(r"(?:--.*\n)+", text)
    fragments = set(re.findall(r"^-- with: (\w+)$", all_scripts(), flags=re.MULTILINE))

    assert head
    assert head[0].startswith(f"-- {script}: ")
    if script not in fragments:
        assert "-- KEYS[1]" in head[0]
        assert "-- Returns " in head[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_is_refused_under_a_full_memory(script: str) -> None:
    """Redis refuses one with a `#!lua` line whatever it does; 6.2 cannot read the line."""
    assert not (PACKAGE / "lua" / f"{script}.lua").read_text().startswith("#!")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_used(script: str) -> None:
    """By a room, or by another script."""
    rooms = "".join((PACKAGE / room).read_text() for room in ROOMS)

    assert f'"{script}"' in rooms or f"-- with: {script}\n" in all_scripts()


def all_scripts() -> str:
    """Read all of them."""
    return "".join((PACKAGE / "lua" / f"{name}.lua").read_text() for name in SCRIPTS)


# What stands around the house.


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    """A release without its entry does not leave the house."""
    versions = re.findall(
        r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )

    assert versions[0] == PROJECT["project"]["version"]


def test_the_package_brings_its_types_and_scripts() -> None:
    """Also when it was installed from a wheel."""
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("script", PROJECT["project"]["scripts"].values())
def test_the_command_leads_somewhere(script: str) -> None:
    """What is typed at a prompt is there after the installation."""
    module, _, function = script.partition(":")

    assert callable(getattr(importlib.import_module(module), function))


def test_what_it_needs_is_little() -> None:
    """Three packages, no upper bounds: everything optional is an extra."""
    needed = PROJECT["project"]["dependencies"]

    assert [re.split(r"[><=!~ ]", need)[0] for need in needed] == [
        "anyio",
        "redis[hiredis]",
        "typing-extensions",
    ]
    assert not any("<" in need or "==" in need for need in needed)


def test_the_oldest_python_named_is_the_oldest_taken() -> None:
    """The classifiers are what the suite runs on."""
    named = [
        tuple(map(int, version.split(".")))
        for line in PROJECT["project"]["classifiers"]
        for version in re.findall(r"Python :: (3\.\d+)$", line)
    ]
    oldest = ".".join(map(str, min(named)))

    assert PROJECT["project"]["requires-python"] == f">={oldest}"


@pytest.mark.parametrize("mark", ["demo", "tests"])
def test_a_bare_machine_needs_one_line(mark: str) -> None:
    """What the README calls one line is one, and stands where `.ci/run` looks for it."""
    [block] = re.findall(
        rf"^<!-- {mark} -->\n```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL
    )

    assert len(block.splitlines()) == 1
    assert block.startswith("python3 -m venv .venv && ")


def test_the_example_of_the_readme_is_the_first_example() -> None:
    """So what a newcomer copies has been run."""
    quickstart = ROOT / "examples" / "quickstart.py"
    if not quickstart.exists():
        pytest.skip("examples/quickstart.py is not written yet")
    text = quickstart.read_text()
    opening = ast.get_docstring(ast.parse(text), clean=False)
    bare = text.replace(f'"""{opening}"""', "", 1).strip() if opening else text.strip()
    blocks = [
        block.strip()
        for block in re.findall(
            r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL
        )
    ]

    assert bare in blocks or text.strip() in blocks
