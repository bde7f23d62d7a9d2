"""What a server says of itself: whether it is too old, or a node of a Cluster."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ._errors import (
    CommandRefusedError,
    PermissionDeniedError,
    UnsupportedServerError,
)
from ._wire import exchange

if TYPE_CHECKING:
    from ._wire import Wire

# XAUTOCLAIM, which everything abandoned is found with, came with it.
_OLDEST = (6, 2)


async def ask_about(wire: Wire, *, within: float) -> bytes:
    """Let a server tell; managed ones may deny INFO.

    Raises:
        ServerError: It does not answer within so many seconds.
    """
    try:
        told = await exchange(wire, "INFO", "server", within=within)
    except PermissionDeniedError:
        try:
            await exchange(wire, "CLUSTER", "SLOTS", within=within)
        except (PermissionDeniedError, CommandRefusedError):
            return b""
        return b"redis_mode:cluster"
    return bytes(told)


def refuse_too_old(info: bytes) -> None:
    """Refuse a server without the commands everything rests on.

    Args:
        info: What it answers to `INFO server`. Without a version nothing is refused: what is
            missing shows at its first use.

    Raises:
        UnsupportedServerError: With its version.
    """
    found = re.search(rb"^redis_version:(\d+)\.(\d+)", info, re.MULTILINE)
    # Valkey says a Redis version too, of which it kept only the commands.
    if found is None or b"valkey_version" in info:
        return
    version = (int(found[1]), int(found[2]))
    if version < _OLDEST:
        msg = (
            f"Redis {version[0]}.{version[1]} is too old: 6.2 or later, or any Valkey, is "
            "needed"
        )
        raise UnsupportedServerError(msg)


def is_cluster_node(info: bytes) -> bool:
    """Say whether it is a node of a Cluster: Redis says redis_mode, Valkey server_mode."""
    return bool(re.search(rb"^(redis|server)_mode:cluster", info, re.MULTILINE))
