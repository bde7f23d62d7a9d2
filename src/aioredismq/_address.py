"""Addresses: a URL as the arguments of redis-py's connection, with our settings. Pure."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ._errors import ConfigurationError

# Connections of ours speak RESP2: RESP3 brings nothing a queue needs, and redis-py 8.1 hands out
# dead connections under it (redis-py #4252).
_OURS: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_timeout": None,  # the wire watches for itself; redis-py 8 would cut blocked reads
    "health_check_interval": 0,
}


def arguments(url: str, connect_timeout: float) -> dict[str, Any]:
    """Read a URL into the arguments of redis-py's connection, with our settings."""
    if "://" not in url:
        url = f"redis://{url}"
    try:
        given: dict[str, Any] = dict(parse_url(url))
        _check_database(url)
    except ValueError as error:
        # Without its cause, which may quote a password that was not percent-encoded.
        raise ConfigurationError(_unusable(url, str(error))) from None
    given.pop("max_connections", None)
    return ours(given, connect_timeout)


def ours(given: dict[str, Any], connect_timeout: float) -> dict[str, Any]:
    """Put our settings over the arguments of redis-py's connection."""
    if "path" not in given:
        given = {**given, "socket_keepalive": True}
    return {
        **given,
        **_OURS,
        "socket_connect_timeout": connect_timeout,
        # Ours is the only retry: redis-py's would send again what may not be sent twice.
        "retry": Retry(NoBackoff(), 0),
    }


def host_and_port(text: str, default: int) -> tuple[str, int]:
    """Read `host:port`; the port may be left out."""
    parts = urlsplit(f"//{text}")
    try:
        return parts.hostname or "localhost", parts.port or default
    except ValueError as error:
        msg = f"{text!r} is not host:port: {error}"
        raise ConfigurationError(msg) from error


def shown(arguments: dict[str, Any]) -> str:
    """Write an address for an error message, without its password."""
    if "path" in arguments:
        return str(arguments["path"])
    return f"{arguments.get('host', 'localhost')}:{arguments.get('port', 6379)}"


def without_password(url: str) -> str:
    """Write a URL for an error message."""
    scheme, separator, rest = url.partition("://")
    if not re.fullmatch(
        r"[a-z+]+", scheme
    ):  # no scheme, and a password that looks like one
        scheme, separator, rest = "", "", url
    _, at, place = rest.rpartition("@")
    place = re.sub(r"(password=)[^&]*", r"\1***", place)
    return f"{scheme}{separator}{'***@' if at else ''}{place}"


def _check_database(url: str) -> None:
    """Refuse what redis-py would take for database 0."""
    parts = urlsplit(url)
    if parts.scheme in {"redis", "rediss"} and not re.fullmatch(r"/?\d*", parts.path):
        msg = "the database, behind the slash, must be a number"
        raise ValueError(msg)


def _unusable(url: str, reason: str) -> str:
    """Say why a URL cannot be used, quoting nothing of it that is not shown."""
    shown_url = without_password(url)
    reason = re.sub(
        r"'[^']*'",
        lambda word: word[0] if word[0][1:-1] in shown_url else "***",
        reason,
    )
    hint = " (special characters in a password must be percent-encoded)"
    return f"the URL {shown_url!r} cannot be used: {reason}{hint if '@' in url else ''}"


def with_port(url: str, port: object) -> str:
    """Put a port into a URL or host name, in place of the one it has.

    Raises:
        ConfigurationError: It is no port, or the URL is not one of a single host.
    """
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        msg = f"port must be a whole number from 1 to 65535, got {port!r}"
        raise ConfigurationError(msg)
    parts = urlsplit(url if "://" in url else f"redis://{url}")
    if parts.scheme not in {"redis", "rediss"}:
        msg = f"port goes with a redis:// URL or a host name, got {without_password(url)!r}"
        raise ConfigurationError(msg)
    credentials, at, _ = parts.netloc.rpartition("@")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return parts._replace(
        netloc=f"{credentials}{at}{host or 'localhost'}:{port}"
    ).geturl()
