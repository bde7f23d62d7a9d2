from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest

from aioredismq import (
    ConfigurationError,
    ConsumerConfig,
    ExponentialBackoff,
    Failure,
    Message,
    NoRetry,
    ProducerConfig,
    QueueConfig,
    RetryPolicy,
)
from aioredismq import _config as room
from aioredismq._config import (
    ConsumerOptions,
    QueueOptions,
    consumer_config,
    split_options,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIGS: list[type[DataclassInstance]] = [QueueConfig, ProducerConfig, ConsumerConfig]


def hints(cls: type) -> dict[str, Any]:
    """Resolve the annotations of a class as a type checker would."""
    known = {
        **vars(room),
        "Message": Message,
        "Failure": Failure,
        "Callable": Callable,
    }
    return get_type_hints(cls, known, known)


# Options and fields.


def test_the_options_of_a_consumer_are_its_fields() -> None:
    """No knob is declared twice in two ways."""
    assert hints(ConsumerOptions) == hints(ConsumerConfig)


def test_the_options_of_a_queue_are_its_fields_and_its_producers() -> None:
    """`RedisMessageQueue(name, **options)` takes both, so no name may be in both."""
    queue, producer = hints(QueueConfig), hints(ProducerConfig)

    assert hints(QueueOptions) == queue | producer
    assert not queue.keys() & producer.keys()


@pytest.mark.parametrize("options", [ConsumerOptions, QueueOptions])
def test_no_option_must_be_given(options: Any) -> None:
    """Each has its default."""
    assert not options.__required_keys__


def test_the_options_of_a_queue_are_shared_out() -> None:
    """Each goes to the configuration it belongs to."""
    queue, producer = split_options({"wire": "original", "max_batch": 7})

    assert queue == QueueConfig(wire="original")
    assert producer == ProducerConfig(max_batch=7)


def test_the_options_of_a_consumer_make_its_configuration() -> None:
    """As they are."""
    assert consumer_config({"concurrency": 3}) == ConsumerConfig(concurrency=3)


@pytest.mark.parametrize("make", [split_options, consumer_config])
def test_an_unknown_option_is_named(make: Any) -> None:
    """Beside those there are, as it is a slip most of the time."""
    with pytest.raises(
        ConfigurationError, match=r"^unknown option 'concurency'; there"
    ):
        make({"concurency": 3})


# The configurations.


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_cannot_be_changed(config: Any) -> None:
    """It was checked when it was made, and is passed on as it is."""
    made = config()

    for item in fields(config):
        with pytest.raises(FrozenInstanceError):
            setattr(made, item.name, None)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_is_made_by_names(config: Any) -> None:
    """Nobody has to remember an order, and none can be broken by a new field."""
    with pytest.raises(TypeError):
        config("plain")


def test_groups_may_be_given_as_any_sequence() -> None:
    """They are kept as a tuple."""
    groups: Any = ["a", "b"]

    assert QueueConfig(groups=groups).groups == ("a", "b")


SECONDS = "must be more than 0 seconds"
CALLABLE = "must be a callable or None"


@pytest.mark.parametrize(
    ("config", "name", "value", "rule"),
    [
        (QueueConfig, "wire", "original", ""),
        (QueueConfig, "wire", "json", "must be 'plain' or 'original'"),
        (QueueConfig, "groups", ("a",), ""),
        (QueueConfig, "groups", "orders", "must be a sequence of names"),
        (QueueConfig, "groups", 3, "must be a sequence of names"),
        (ProducerConfig, "produce_timeout", 0.5, ""),
        (ProducerConfig, "produce_timeout", 0, SECONDS),
        (ProducerConfig, "produce_timeout", -1.0, SECONDS),
        (ProducerConfig, "produce_timeout", math.nan, SECONDS),
        (ProducerConfig, "produce_timeout", None, SECONDS),
        (ProducerConfig, "produce_timeout", True, SECONDS),
        (ProducerConfig, "produce_timeout", "10", SECONDS),
        (ProducerConfig, "produce_timeout", 86_400, ""),
        (ProducerConfig, "produce_timeout", 86_401, "must be at most a day"),
        (ProducerConfig, "produce_timeout", math.inf, "must be at most a day"),
        (ProducerConfig, "max_batch", 1, ""),
        (ProducerConfig, "max_batch", 1000, ""),
        (ProducerConfig, "max_batch", 0, "must be a whole number, at least 1"),
        (ProducerConfig, "max_batch", 1.5, "must be a whole number, at least 1"),
        (ProducerConfig, "max_batch", 1001, "must be at most 1000"),
        (ProducerConfig, "max_batch_bytes", 1, ""),
        (ProducerConfig, "max_batch_bytes", 0, "must be a whole number, at least 1"),
        (ProducerConfig, "max_waiting", 1, ""),
        (ProducerConfig, "max_waiting", 0, "must be a whole number, at least 1"),
        (ProducerConfig, "max_waiting", True, "must be a whole number, at least 1"),
        (ProducerConfig, "max_waiting_bytes", 1, ""),
        (ProducerConfig, "max_waiting_bytes", 0, "must be a whole number, at least 1"),
        (ProducerConfig, "dumps", repr, ""),
        (ProducerConfig, "dumps", "json", CALLABLE),
        (ConsumerConfig, "group", "billing", ""),
        (ConsumerConfig, "group", "", "must be a non-empty string"),
        (ConsumerConfig, "group", b"billing", "must be a non-empty string"),
        (ConsumerConfig, "consumer_name", "worker", ""),
        (ConsumerConfig, "consumer_name", "", "must be a non-empty string"),
        (ConsumerConfig, "consumer_name", 3, "must be a non-empty string"),
        (ConsumerConfig, "concurrency", 1, ""),
        (ConsumerConfig, "concurrency", 0, "must be a whole number, at least 1"),
        (ConsumerConfig, "concurrency", "16", "must be a whole number, at least 1"),
        (ConsumerConfig, "count", 1, ""),
        (ConsumerConfig, "count", 0, "must be a whole number, at least 1"),
        (ConsumerConfig, "batch_size", 1, ""),
        (ConsumerConfig, "batch_size", 0, "must be a whole number, at least 1"),
        (ConsumerConfig, "handler_timeout", 0.1, ""),
        (ConsumerConfig, "handler_timeout", 0, SECONDS),
        (ConsumerConfig, "visibility_timeout", 0.5, ""),
        (ConsumerConfig, "visibility_timeout", 0.4, "must be at least 0.5 seconds"),
        (ConsumerConfig, "visibility_timeout", None, "must be at least 0.5 seconds"),
        (
            ConsumerConfig,
            "visibility_timeout",
            math.nan,
            "must be at least 0.5 seconds",
        ),
        (
            ConsumerConfig,
            "visibility_timeout",
            math.inf,
            "must be at least 0.5 seconds",
        ),
        (ConsumerConfig, "on_lost_lease", "cancel", ""),
        (ConsumerConfig, "on_lost_lease", "stop", "must be 'continue' or 'cancel'"),
        (ConsumerConfig, "max_crashes", 1, ""),
        (ConsumerConfig, "max_crashes", 0, "must be a whole number, at least 1"),
        (ConsumerConfig, "max_attempts", 1, ""),
        (ConsumerConfig, "max_attempts", 0, "must be a whole number, at least 1"),
        (ConsumerConfig, "retry", NoRetry(), ""),
        (ConsumerConfig, "retry", 3, r"must have a method delay\(attempt, error\)"),
        (ConsumerConfig, "expired", "drop", ""),
        (ConsumerConfig, "expired", "keep", "must be 'dead' or 'drop'"),
        (ConsumerConfig, "failover", False, ""),
        (ConsumerConfig, "failover", "false", "must be True or False"),
        (ConsumerConfig, "dead_letter_retention", 0.1, ""),
        (ConsumerConfig, "dead_letter_retention", 0, SECONDS),
        (ConsumerConfig, "dead_letter_retention", "1d", SECONDS),
        (ConsumerConfig, "failover_callback", print, ""),
        (ConsumerConfig, "failover_callback", "log", CALLABLE),
        (ConsumerConfig, "shutdown_timeout", 0, ""),
        (ConsumerConfig, "shutdown_timeout", -1, "must be at least 0"),
        (ConsumerConfig, "shutdown_timeout", math.nan, "must be at least 0"),
        (ConsumerConfig, "start", "latest", ""),
        (ConsumerConfig, "start", "now", "must be 'earliest' or 'latest'"),
        (ConsumerConfig, "max_read_ahead", 0, ""),
        (ConsumerConfig, "max_read_ahead", -1, "must be a whole number, at least 0"),
        (ConsumerConfig, "max_read_ahead_bytes", 1, ""),
        (
            ConsumerConfig,
            "max_read_ahead_bytes",
            0,
            "must be a whole number, at least 1",
        ),
        (ConsumerConfig, "loads", repr, ""),
        (ConsumerConfig, "loads", b"json", CALLABLE),
    ],
)
def test_a_field_is_checked_when_it_is_set(
    config: Any, name: str, value: object, rule: str
) -> None:
    """The least that is allowed is taken; what breaks the rule is named with it."""
    if not rule:
        assert getattr(config(**{name: value}), name) == value
        return

    with pytest.raises(ConfigurationError, match=f"^{name} {rule}.*, got {value!r}$"):
        config(**{name: value})


def test_an_empty_group_name_is_refused_among_others() -> None:
    """Each of several is checked."""
    with pytest.raises(ConfigurationError, match=r"^group must be a non-empty string"):
        QueueConfig(groups=("a", ""))


def test_every_field_is_tried_here() -> None:
    """The table above grows with the configurations."""
    [table] = [
        mark.args[1] for mark in test_a_field_is_checked_when_it_is_set.pytestmark
    ]
    tried = {(row[0], row[1]) for row in table if row[3]}
    there = {(config, item.name) for config in CONFIGS for item in fields(config)}

    assert tried == there


def test_what_fails_waits_by_default() -> None:
    """Up to 1 s, doubled each time, up to 5 minutes: a broken neighbour is not hammered."""
    policy: RetryPolicy = ConsumerConfig().retry

    assert policy == ExponentialBackoff(
        initial=1, multiplier=2, maximum=300, jitter=True
    )
