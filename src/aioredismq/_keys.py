"""Every Redis key of a queue, as a function of its name.

The stream's key is the name itself, so that redis-cli, RedisInsight, KEDA and exporters just
work. Everything else shares its cluster slot: `orders` gives `{orders}:dead`, and a name that
already has a hash tag, `{shop}:orders`, gives `{shop}:orders:dead`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ._errors import ConfigurationError

_DERIVED = (
    "dead",
    "queue",
    "bell",
    "sent",
    "lane",
    "due",
    "later",
    "gone",
    "delayed",
    "delayed-fields",
    "settled",
)


def check_name(name: object, what: str = "queue name") -> None:
    """Refuse a name whose derived keys would leave its slot or meet another queue's.

    Raises:
        ConfigurationError: With the rule that is broken.
    """
    if not isinstance(name, str) or not name:
        msg = f"{what} must be a non-empty string, got {name!r}"
        raise ConfigurationError(msg)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        msg = f"{what} must be valid Unicode, got {name!r}"
        raise ConfigurationError(msg) from error
    opening, closing = name.count("{"), name.count("}")
    if (opening, closing) == (0, 0):
        return
    before, _, rest = name.partition("{")
    tag, brace, after = rest.partition("}")
    if (opening, closing) != (1, 1) or not brace or not tag:
        msg = (
            f"{what} must have no braces or one hash tag such as '{{shop}}:orders', "
            f"got {name!r}"
        )
        raise ConfigurationError(msg)
    if not before and not after:
        msg = (
            f"{what} must not be a bare hash tag: the keys of {name!r} would be those of "
            f"{tag!r}; use {tag!r}"
        )
        raise ConfigurationError(msg)
    derived = next((part for part in after.split(":")[1:] if part in _DERIVED), None)
    if derived is not None:
        msg = (
            f"{what} must not be like a key another queue derives from its name "
            f"(…:{derived}), got {name!r}"
        )
        raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one queue. Refuses a name that has none of its own."""

    name: str
    stream: str = field(init=False)
    """The stream: the name, unprefixed."""
    _root: str = field(init=False)

    def __post_init__(self) -> None:
        """Check the name and find the hash tag."""
        check_name(self.name)
        object.__setattr__(self, "stream", self.name)
        root = self.name if "{" in self.name else f"{{{self.name}}}"
        object.__setattr__(self, "_root", root)

    def for_dead_letters(self) -> QueueKeys:
        """The keys under which the dead letters are consumed: their stream in place of the queue's.

        What fails there stays there: it is its own stream of dead letters.
        """
        keys = object.__new__(QueueKeys)
        object.__setattr__(keys, "name", self.name)
        object.__setattr__(keys, "stream", self.dead)
        object.__setattr__(keys, "_root", self.dead)
        return keys

    @property
    def dead(self) -> str:
        """Stream of the dead letters."""
        if self.stream != self.name:
            return self.stream
        return f"{self._root}:dead"

    @property
    def queue(self) -> str:
        """Hash: what all users of the queue must agree on."""
        return f"{self._root}:queue"

    @property
    def bell(self) -> str:
        """Channel: something is there earlier than anyone expects it."""
        return f"{self._root}:bell"

    @property
    def gone(self) -> str:
        """Hash with a TTL: the groups, or the queue, deleted on purpose."""
        return f"{self._root}:gone"

    def sent(self, producer: str) -> str:
        """Hash with a TTL: batch numbers of one producer and the ids they were given."""
        return f"{self._root}:sent:{producer}"

    def lane(self, group: str) -> str:
        """Stream: what comes back to one group (retries, hand-overs)."""
        return f"{self._root}:lane:{group}"

    @property
    def delayed(self) -> str:
        """Sorted set: when each delayed message of the queue is due (server ms)."""
        return f"{self._root}:delayed"

    @property
    def delayed_fields(self) -> str:
        """Hash: the fields of each delayed message of the queue."""
        return f"{self._root}:delayed-fields"

    def due(self, group: str) -> str:
        """Sorted set: when each waiting retry of one group is due (server ms)."""
        return f"{self._root}:due:{group}"

    def of_lane(self, group: str) -> list[str]:
        """All keys of a group's lane: the lane, its delayed set, its delayed fields."""
        return [self.lane(group), self.due(group), self.later(group)]

    def settled(self, group: str) -> str:
        """String: what a group has settled since its place was written down, and stays stored."""
        return f"{self._root}:settled:{group}"

    def later(self, group: str) -> str:
        """Hash: the fields of each waiting retry of one group."""
        return f"{self._root}:later:{group}"
