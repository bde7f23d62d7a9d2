from __future__ import annotations

import inspect
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from aioredismq import ConfigurationError
from aioredismq._keys import _DERIVED, QueueKeys, check_name

# Names built of what derived keys are built of are the ones that could meet them.
pieces = st.sampled_from([*"{}:ab ö", "{a}", *_DERIVED])
names = st.lists(pieces, min_size=1, max_size=6).map("".join) | st.text(min_size=1)
groups = st.sampled_from(["a", "b", "dead", "a:b", "{a}", "a:dead"])


def is_allowed(name: str) -> bool:
    """Say whether a name is taken."""
    try:
        check_name(name)
    except ConfigurationError:
        return False
    return True


_NO_KEYS = {"for_dead_letters", "of_lane"}


def derived(keys: QueueKeys, group: str) -> dict[str, str]:
    """List every key of a queue beside its stream, by what it is."""
    found = {}
    for what, member in vars(QueueKeys).items():
        if isinstance(member, property):
            found[what] = getattr(keys, what)
        elif (
            inspect.isfunction(member)
            and not what.startswith("_")
            and what not in _NO_KEYS
        ):
            found[what] = member(keys, group)
    return found


def test_the_keys_of_a_queue_are_these() -> None:
    """The stream is the name itself, so that redis-cli and exporters just work."""
    keys = QueueKeys("orders")

    assert keys.stream == "orders"
    assert keys.dead == "{orders}:dead"
    assert keys.queue == "{orders}:queue"
    assert keys.bell == "{orders}:bell"
    assert keys.gone == "{orders}:gone"
    assert keys.sent("ab12") == "{orders}:sent:ab12"
    assert keys.lane("billing") == "{orders}:lane:billing"
    assert keys.due("billing") == "{orders}:due:billing"
    assert keys.later("billing") == "{orders}:later:billing"


def test_a_name_with_a_hash_tag_keeps_it() -> None:
    """`{{shop}:orders}:dead` would land in another slot."""
    keys = QueueKeys("{shop}:orders")

    assert keys.stream == "{shop}:orders"
    assert keys.dead == "{shop}:orders:dead"


@given(name=names.filter(is_allowed), group=groups)
def test_dead_letters_are_consumed_under_keys_of_their_own(
    name: str, group: str
) -> None:
    """Their stream in the queue's place, in its slot; what fails there stays there."""
    keys = QueueKeys(name)
    of_dead = keys.for_dead_letters()

    own = set(derived(of_dead, group).values())
    assert of_dead.stream == of_dead.dead == keys.dead
    assert own & set(derived(keys, group).values()) == {keys.dead}
    assert {key_slot(key.encode()) for key in own} == {key_slot(name.encode())}


@given(name=names.filter(is_allowed), group=groups)
def test_all_keys_of_a_queue_share_a_slot(name: str, group: str) -> None:
    """One script reaches them all, also in a Cluster."""
    keys = QueueKeys(name)

    slots = {
        key_slot(key.encode()) for key in (keys.stream, *derived(keys, group).values())
    }

    assert len(slots) == 1


@given(name=names.filter(is_allowed), group=groups)
def test_the_keys_of_a_queue_differ(name: str, group: str) -> None:
    """Whatever the group is called."""
    keys = QueueKeys(name)
    all_of_them = [keys.stream, *derived(keys, group).values()]

    assert len(set(all_of_them)) == len(all_of_them)


@given(
    several=st.lists(names.filter(is_allowed), min_size=2, max_size=4, unique=True),
    group=groups,
    other=groups,
)
def test_two_queues_share_no_key(several: list[str], group: str, other: str) -> None:
    """What one derives from its name is neither another's stream nor derived by it."""
    for one, two in combinations(map(QueueKeys, several), 2):
        mine = {one.stream, *derived(one, group).values()}
        theirs = {two.stream, *derived(two, other).values()}
        assert not mine & theirs


@given(name=names.filter(is_allowed), group=groups)
def test_what_a_queue_derives_is_no_queues_name(name: str, group: str) -> None:
    """So that nobody makes a queue of another's dead letters or lane by mistake."""
    taken = [key for key in derived(QueueKeys(name), group).values() if is_allowed(key)]

    assert not taken


@pytest.mark.parametrize(
    "name", ["orders", "a", "a b", "größe", "a:dead", "dead", "{shop}:orders", "x{y}z"]
)
def test_an_ordinary_name_is_taken(name: str) -> None:
    """Without braces nothing can be wrong with it."""
    assert QueueKeys(name).stream == name


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "must be a non-empty string"),
        (None, "must be a non-empty string"),
        (b"orders", "must be a non-empty string"),
        (3, "must be a non-empty string"),
        ("\ud800", "must be valid Unicode"),
        ("{", "must have no braces or one hash tag"),
        ("}", "must have no braces or one hash tag"),
        ("{}", "must have no braces or one hash tag"),
        ("{}:orders", "must have no braces or one hash tag"),
        ("}a{", "must have no braces or one hash tag"),
        ("{a}{b}", "must have no braces or one hash tag"),
        ("{{a}}", "must have no braces or one hash tag"),
        ("{a", "must have no braces or one hash tag"),
        ("{orders}", "must not be a bare hash tag"),
        ("{orders}:dead", "must not be like a key another queue derives"),
        ("{orders}:lane:billing", "must not be like a key another queue derives"),
        ("{shop}:orders:due:a", "must not be like a key another queue derives"),
    ],
)
def test_a_name_without_keys_of_its_own_is_refused(name: object, rule: str) -> None:
    """With the rule and the offender."""
    with pytest.raises(ConfigurationError) as raised:
        check_name(name)

    assert str(raised.value).startswith(f"queue name {rule}")
    assert repr(name) in str(raised.value)


def test_whose_name_it_is_can_be_said() -> None:
    """The same rules hold for other names, and the text says which it was."""
    with pytest.raises(ConfigurationError, match=r"^partition must be a non-empty"):
        check_name("", "partition")
