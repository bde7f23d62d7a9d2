"""Addresses: a URL as the arguments of redis-py's connection, with our settings. Pure."""

from __future__ import annotations

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
    "socket_keepalive": True,
    "health_check_interval": 0,
}


def arguments(url: str, connect_timeout: float) -> dict[str, Any]:
    """Read a URL into the arguments of redis-py's connection, with our settings."""
    if "://" not in url:
        url = f"redis://{url}"
    try:
        given: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        msg = f"the URL {without_password(url)!r} cannot be used: {error}"
        raise ConfigurationError(msg) from error
    given.pop("max_connections", None)
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
    before, at, after = url.rpartition("@")
    return f"{before.split('://', 1)[0]}://***@{after}" if at else url


def with_port(url: str, port: object) -> str:
    """Put a port into a URL or host name, in place of the one it has.

    Raises:
        ConfigurationError: It is no port.
    """
    if not isinstance(port, int) or not 0 < port < 65536:
        msg = f"port must be a whole number from 1 to 65535, got {port!r}"
        raise ConfigurationError(msg)
    parts = urlsplit(url if "://" in url else f"redis://{url}")
    credentials, at, _ = parts.netloc.rpartition("@")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return parts._replace(
        netloc=f"{credentials}{at}{host or 'localhost'}:{port}"
    ).geturl()
