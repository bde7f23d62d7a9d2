"""Every knob: its unit, its reason, its check. Durations are seconds, sizes bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ._errors import ConfigurationError, is_finite
from ._retry import ExponentialBackoff, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._message import Message
    from ._outcome import Failure


def _at_least(config: object, name: str, least: float, *, kind: type = float) -> None:
    """Refuse a field that is no number, or too small."""
    value = getattr(config, name)
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        fits = fits and isinstance(value, int)
    if not fits or not value >= least:
        what = "a whole number, at least" if kind is int else "at least"
        msg = f"{name} must be {what} {least:g}, got {value!r}"
        raise ConfigurationError(msg)


def _above_zero(config: object, name: str) -> None:
    """Refuse a duration that never comes or is over at once."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        msg = f"{name} must be more than 0 seconds, got {value!r}"
        raise ConfigurationError(msg)


def _one_of(config: object, name: str, allowed: tuple[object, ...]) -> None:
    """Refuse a value outside the list."""
    value = getattr(config, name)
    if value not in allowed:
        words = " or ".join(repr(word) for word in allowed)
        msg = f"{name} must be {words}, got {value!r}"
        raise ConfigurationError(msg)


def _callable_or_none(config: object, name: str) -> None:
    """Refuse what cannot be called."""
    value = getattr(config, name)
    if value is not None and not callable(value):
        msg = f"{name} must be a callable or None, got {value!r}"
        raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """What all users of a queue must agree on."""

    wire: Literal["plain", "original"] = "plain"
    """How entries are written. `original`: as the JavaScript library "Redis Message Queue" does
    (the JSON text is the field name), to take over its streams queue by queue."""
    groups: tuple[str, ...] | None = None
    """Groups `initialize()` makes. None: those of the registered handlers, else the default
    group, `<name>_group`. Each group holds every message until it has handled it, so name the
    groups here where producers may start before a consumer of each has ever run."""

    def __post_init__(self) -> None:
        """Check every field."""
        _one_of(self, "wire", ("plain", "original"))
        if self.groups is None:
            return
        given: object = self.groups
        if isinstance(given, str) or not isinstance(given, Iterable):
            msg = f"groups must be a sequence of names, got {given!r}"
            raise ConfigurationError(msg)
        object.__setattr__(self, "groups", tuple(self.groups))
        for group in self.groups:
            check_group(group)


# What was sent is remembered by the server for some times as long.
_LONGEST_TO_PRODUCE = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerConfig:
    """How messages are gathered and sent."""

    produce_timeout: float = 10.0
    """Seconds `produce` waits, for room and the server's answer, an outage included, in all.
    Long enough for a failover, short enough for a request handler to answer its caller. At most
    a day: the server remembers what was sent for four times as long, and ten minutes at least."""
    max_batch: int = 64
    """Messages in one write at most. Larger batches are slower: the next one could not be on
    its way while this one's answer comes back."""
    max_batch_bytes: int = 256 * 1024
    """Bytes in one write at most; a larger message travels alone."""
    max_waiting: int = 10_000
    """Messages without an answer at once, at most; `produce` then waits for room."""
    max_waiting_bytes: int = 64 * 1024 * 1024
    """Bytes without an answer at once, at most; `produce` then waits for room."""
    dumps: Callable[[Any], bytes | str] | None = None
    """JSON encoder, such as `orjson.dumps`. None: the standard library's, compact."""

    def __post_init__(self) -> None:
        """Check every field."""
        _above_zero(self, "produce_timeout")
        if self.produce_timeout > _LONGEST_TO_PRODUCE:
            msg = (
                f"produce_timeout must be at most a day ({_LONGEST_TO_PRODUCE} seconds), got "
                f"{self.produce_timeout!r}"
            )
            raise ConfigurationError(msg)
        _at_least(self, "max_batch", 1, kind=int)
        if self.max_batch > MOST_IN_ONE_SCRIPT:
            msg = f"max_batch must be at most {MOST_IN_ONE_SCRIPT}, got {self.max_batch!r}"
            raise ConfigurationError(msg)
        _at_least(self, "max_batch_bytes", 1, kind=int)
        _at_least(self, "max_waiting", 1, kind=int)
        _at_least(self, "max_waiting_bytes", 1, kind=int)
        _callable_or_none(self, "dumps")


# Below it a renewal that is late by a collection of garbage would lose the lease.
_LEAST_VISIBILITY = 0.5

# One script call holds the server for its whole length: 1000 entries are about 1.5 ms.
MOST_IN_ONE_SCRIPT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerConfig:
    """How a consumer reads, runs and settles. Durations are seconds."""

    group: str | None = None
    """Consumer group. None: the queue's default, `<name>_group`. Consumers of one group share
    the messages; every group gets each of them."""
    consumer_name: str | None = None
    """Label, first part of the name Redis shows. None: host name and process id. A suffix makes
    it unique, as two processes must never share a list of pending messages."""
    concurrency: int = 16
    """Handlers running at once."""
    count: int | None = None
    """Messages one read brings at most; it bounds the read-ahead too. None: by `max_read_ahead`
    and what the handlers are measured to use."""
    batch_size: int = 100
    """Messages a batch handler gets at most. It never waits for a batch to fill."""
    handler_timeout: float | None = None
    """Seconds after which a handler is cancelled and its attempt has failed. None: never."""
    visibility_timeout: float = 30.0
    """Seconds without a renewed lease after which another consumer may take a message over. Held
    messages are renewed every third of it: it bounds how long a crash goes unnoticed, not how
    long a handler may take."""
    on_lost_lease: Literal["continue", "cancel"] = "continue"
    """What becomes of a handler whose message was taken over meanwhile. Either way only its
    acknowledgement still counts. A batch handler is cancelled as a whole: the other messages of
    its batch are handed back untried."""
    max_crashes: int = 3
    """Processes that may end while a message is their marked suspect before it is dead."""
    max_attempts: int = 5
    """Times a handler is tried before the message has failed for good."""
    retry: RetryPolicy = field(default_factory=ExponentialBackoff)
    """How long a failed message waits, holding no slot: by default up to 1 s after the first
    failure, doubled with each further one, up to 5 minutes."""
    expired: Literal["dead", "drop"] = "dead"
    """What becomes of a message whose time (`produce(expires=)`) has passed before it was
    handled: a dead letter with reason `expired`, or nothing."""
    failover: bool = True
    """Whether what fails for good becomes a dead letter. False: it is logged, counted in
    `Consumer.failed`, reported to `failover_callback` and dropped."""
    dead_letter_retention: float | None = None
    """Seconds after which dead letters are removed, looked at every few minutes. None: never; they
    then stay until somebody discards them."""
    failover_callback: Callable[[Message, Failure], object] | None = None
    """Told of each message that has failed for good, after it was put aside; sync or async. What
    it raises is logged and changes nothing. It is told once at most: where the answer to putting
    it aside was lost with its line, not at all; `dead_letters` knows of all of them."""
    shutdown_timeout: float = 10.0
    """Seconds running handlers get to finish when the consumer stops; the rest is cancelled and
    handed back. Below the grace most supervisors give (30 s), so that there is time for it."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where a group that does not exist yet begins: with everything still stored, or only with
    what is produced from now on."""
    max_read_ahead: int = 512
    """Messages read and not started, at most. What is read ahead follows the measured time of
    the handlers: none for slow ones, up to this for fast ones."""
    max_read_ahead_bytes: int = 8 * 1024 * 1024
    """Bytes read and not started, about at most."""
    loads: Callable[[bytes], Any] | None = None
    """JSON decoder, such as `orjson.loads`. None: the standard library's."""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.group is not None:
            check_group(self.group)
        label: object = self.consumer_name
        if label is not None and not (label and isinstance(label, str)):
            msg = f"consumer_name must be a non-empty string, got {label!r}"
            raise ConfigurationError(msg)
        _at_least(self, "concurrency", 1, kind=int)
        if self.count is not None:
            _at_least(self, "count", 1, kind=int)
        _at_least(self, "batch_size", 1, kind=int)
        for name in ("handler_timeout", "dead_letter_retention"):
            if getattr(self, name) is not None:
                _above_zero(self, name)
        if not is_finite(self.visibility_timeout, least=_LEAST_VISIBILITY):
            msg = (
                f"visibility_timeout must be at least {_LEAST_VISIBILITY:g} seconds, and "
                f"finite, got {self.visibility_timeout!r}"
            )
            raise ConfigurationError(msg)
        _one_of(self, "on_lost_lease", ("continue", "cancel"))
        _at_least(self, "max_crashes", 1, kind=int)
        _at_least(self, "max_attempts", 1, kind=int)
        if not callable(getattr(self.retry, "delay", None)):
            msg = f"retry must have a method delay(attempt, error), got {self.retry!r}"
            raise ConfigurationError(msg)
        _callable_or_none(self, "failover_callback")
        _at_least(self, "shutdown_timeout", 0)
        _one_of(self, "expired", ("dead", "drop"))
        _one_of(self, "failover", (True, False))  # the text "false" would be true
        _one_of(self, "start", ("earliest", "latest"))
        _at_least(self, "max_read_ahead", 0, kind=int)
        _at_least(self, "max_read_ahead_bytes", 1, kind=int)
        _callable_or_none(self, "loads")


def check_group(group: object) -> None:
    """Refuse a group without a name."""
    if not isinstance(group, str) or not group:
        msg = f"group must be a non-empty string, got {group!r}"
        raise ConfigurationError(msg)


class ConsumerOptions(TypedDict, total=False):
    """The fields of `ConsumerConfig` as keyword arguments."""

    group: str | None
    consumer_name: str | None
    concurrency: int
    count: int | None
    batch_size: int
    handler_timeout: float | None
    visibility_timeout: float
    on_lost_lease: Literal["continue", "cancel"]
    max_crashes: int
    max_attempts: int
    retry: RetryPolicy
    expired: Literal["dead", "drop"]
    failover: bool
    dead_letter_retention: float | None
    failover_callback: Callable[[Message, Failure], object] | None
    shutdown_timeout: float
    start: Literal["earliest", "latest"]
    max_read_ahead: int
    max_read_ahead_bytes: int
    loads: Callable[[bytes], Any] | None


class QueueOptions(TypedDict, total=False):
    """The fields of `QueueConfig` and `ProducerConfig` as keyword arguments."""

    wire: Literal["plain", "original"]
    groups: tuple[str, ...] | None
    produce_timeout: float
    max_batch: int
    max_batch_bytes: int
    max_waiting: int
    max_waiting_bytes: int
    dumps: Callable[[Any], bytes | str] | None


def split_options(options: QueueOptions) -> tuple[QueueConfig, ProducerConfig]:
    """Share the keyword arguments of a queue out to the two configurations they belong to.

    Raises:
        ConfigurationError: A name that neither has, or a value a field refuses.
    """
    given: dict[str, Any] = dict(options)
    mine = {item.name for item in fields(QueueConfig)}
    others = {item.name for item in fields(ProducerConfig)}
    unknown = sorted(given.keys() - mine - others)
    if unknown:
        msg = f"unknown option {unknown[0]!r}; there are {', '.join(sorted(mine | others))}"
        raise ConfigurationError(msg)
    return (
        QueueConfig(**{name: given[name] for name in given.keys() & mine}),
        ProducerConfig(**{name: given[name] for name in given.keys() & others}),
    )


def consumer_config(options: ConsumerOptions) -> ConsumerConfig:
    """Make the configuration of a consumer from keyword arguments.

    Raises:
        ConfigurationError: A name it does not have, or a value a field refuses.
    """
    known = {item.name for item in fields(ConsumerConfig)}
    unknown = sorted(options.keys() - known)
    if unknown:
        msg = f"unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}"
        raise ConfigurationError(msg)
    return ConsumerConfig(**options)
