"""What a server says of itself: whether it is too old, or a node of a Cluster. Pure."""

from __future__ import annotations

import re

from ._errors import UnsupportedServerError

# XAUTOCLAIM, which everything abandoned is found with, came with it.
_OLDEST = (6, 2)


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
