from __future__ import annotations

import pytest
import redis.asyncio as redis
from hypothesis import example, given
from hypothesis import strategies as st

from aioredismq import ConfigurationError
from aioredismq._address import (
    arguments,
    host_and_port,
    shown,
    with_port,
    without_password,
)

# A password as people paste it into a URL: quoted, or not quite.
SECRETS = st.text("abcXYZ019%:/@?#&=+ é", min_size=1).map(
    lambda text: f"s3cr3t{text}t3rc3s"
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://example.org:7000/3", {"host": "example.org", "port": 7000, "db": 3}),
        ("redis://example.org", {"host": "example.org"}),
        ("redis://example.org/", {"host": "example.org"}),
        ("example.org:7000", {"host": "example.org", "port": 7000}),
        ("example.org", {"host": "example.org"}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000}),
        ("redis://me:p%40ss@h", {"host": "h", "username": "me", "password": "p@ss"}),
        ("redis://:p%2Fss@h", {"host": "h", "password": "p/ss"}),
        ("redis://h?client_name=me&db=2", {"host": "h", "client_name": "me", "db": 2}),
        ("unix:///tmp/redis.sock?db=1", {"path": "/tmp/redis.sock", "db": 1}),  # noqa: S108 -- never opened
        ("rediss://h", {"host": "h", "connection_class": redis.SSLConnection}),
    ],
)
def test_a_url_says_where_and_as_whom(url: str, expected: dict[str, object]) -> None:
    """As everywhere else in the world of Redis; a bare host name will do."""
    given = arguments(url, 5.0)

    assert {name: given[name] for name in expected} == expected


def test_some_settings_are_ours_whatever_the_url_says() -> None:
    """The wire rests on them."""
    given = arguments(
        "redis://h?protocol=3&decode_responses=yes&socket_timeout=1&max_connections=3"
        "&health_check_interval=7&retry_on_timeout=yes",
        2.5,
    )

    assert given["socket_keepalive"] is True
    assert given["protocol"] == 2
    assert given["decode_responses"] is False
    assert given["socket_timeout"] is None
    assert given["health_check_interval"] == 0
    assert given["socket_connect_timeout"] == 2.5
    assert given["retry"].get_retries() == 0
    assert "max_connections" not in given


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://me:s3cr3t@example.org", "redis://"),
        ("redis://me:s3cr3t@example.org:99999", "Port"),
        ("redis://me:s3cr3t@example.org:port", "Port"),
        ("redis://me:s3cr3t@example.org?socket_connect_timeout=soon", "socket_connect"),
        ("redis://me:s3cr3t@example.org/orders", "database"),
        ("redis://me:s3cr3t@example.org/1/2", "database"),
        ("redis://example.org/orders?password=s3cr3t", "database"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, rule: str) -> None:
    """With the reason and the URL, but never with its password."""
    with pytest.raises(ConfigurationError, match=rule) as caught:
        arguments(url, 5.0)

    assert "example.org" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@given(SECRETS)
@example("s3cr3t://t3rc3s")
def test_a_password_is_never_shown(secret: str) -> None:
    """Wherever it stands in the URL, and however it was quoted."""
    for url in (
        f"redis://me:{secret}@example.org:7000/3",
        f"redis://:{secret}@example.org",
        f"me:{secret}@example.org",
        f"redis+sentinel://{secret}@example.org/service",
    ):
        assert "3cr3t" not in without_password(url)


@pytest.mark.parametrize("secret", ["s3cr3t/x", "s3cr3t?x", "s3cr3t#x", "123/s3cr3t"])
def test_a_password_that_was_not_quoted_is_not_shown_either(secret: str) -> None:
    """The parser takes a part of it for something else, and quotes that when it complains."""
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        arguments(f"redis://me:{secret}@example.org", 5.0)

    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://me:s3cr3t@h:7000/3", "redis://***@h:7000/3"),
        ("me:s3cr3t@h", "***@h"),
        ("redis://h:7000/3?client_name=me", "redis://h:7000/3?client_name=me"),
        ("redis://h?password=s3cr3t&db=1", "redis://h?password=***&db=1"),
        (
            "redis+sentinel://h/s?sentinel_password=x",
            "redis+sentinel://h/s?sentinel_password=***",
        ),
    ],
)
def test_the_rest_of_a_url_is_shown(url: str, expected: str) -> None:
    """So that the mistake can be found."""
    assert without_password(url) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h:7000", ("h", 7000)),
        ("h", ("h", 26379)),
        ("[::1]:7000", ("::1", 7000)),
        (":7000", ("localhost", 7000)),
    ],
)
def test_a_port_may_be_left_out(text: str, expected: tuple[str, int]) -> None:
    """Then it is the usual one."""
    assert host_and_port(text, 26379) == expected


@pytest.mark.parametrize("text", ["h:port", "h:99999"])
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    """By name."""
    with pytest.raises(ConfigurationError, match=f"'{text}' is not host:port"):
        host_and_port(text, 26379)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ({"host": "h", "port": 7000, "password": "s3cr3t"}, "h:7000"),
        ({}, "localhost:6379"),
        ({"path": "/run/redis.sock"}, "/run/redis.sock"),
    ],
)
def test_an_address_is_shown_in_few_words(
    address: dict[str, object], expected: str
) -> None:
    """Host and port, or the socket's path."""
    assert shown(address) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:6379/2", "redis://h:7000/2"),
        ("h", "redis://h:7000"),
        ("h:1", "redis://h:7000"),
        ("redis://me:p%40ss@h", "redis://me:p%40ss@h:7000"),
        ("redis://[::1]/2?db=3", "redis://[::1]:7000/2?db=3"),
        ("rediss://", "rediss://localhost:7000"),
    ],
)
def test_a_port_takes_the_place_of_the_urls(url: str, expected: str) -> None:
    """As the original library has it: a host and a port."""
    assert with_port(url, 7000) == expected


@pytest.mark.parametrize("port", [0, 65536, -1, "7000", 70.5, None, True])
def test_what_is_no_port_is_refused(port: object) -> None:
    """With the rule and the offender."""
    with pytest.raises(ConfigurationError, match="whole number from 1 to 65535"):
        with_port("redis://h", port)


@pytest.mark.parametrize(
    "url", ["unix:///run/redis.sock", "redis+sentinel://a:1,b:2/service"]
)
def test_a_url_without_one_port_takes_none(url: str) -> None:
    """It would be ignored, or put in the place of several."""
    with pytest.raises(ConfigurationError, match="port goes with"):
        with_port(url, 7000)
