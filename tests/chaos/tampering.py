"""What somebody may do to a queue's keys and connections while it is in use."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.asyncio import RedisCluster
from redis.exceptions import RedisError, ResponseError

from aioredismq._keys import QueueKeys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from tests.support import Client

    Tamper: TypeAlias = Callable[[Client, str], Awaitable[set[int]]]

# In one step, so that it is known exactly what was there: the bodies in the first three keys, which
# are streams, and in the others, which are hashes of packed fields.
_TAKE_AWAY = """
    local bodies = {}
    local function note(fields)
        for at = 1, #fields, 2 do
            if fields[at] == 'body' then bodies[#bodies + 1] = fields[at + 1] end
        end
    end
    for at, key in ipairs(KEYS) do
        if at <= 3 then
            for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do note(entry[2]) end
        else
            for _, packed in ipairs(redis.call('HVALS', key)) do note(cmsgpack.unpack(packed)) end
        end
    end
    redis.call(unpack(ARGV))
    return bodies
"""


async def flush_scripts(client: Client, name: str) -> set[int]:
    """Let the server forget every script."""
    await _on_all(client, "SCRIPT FLUSH")
    return set()


async def kill_clients(client: Client, name: str) -> set[int]:
    """Close every connection, the doorbell's too."""
    for kind in ("normal", "pubsub"):
        with suppress(RedisError):
            await _on_all(client, "CLIENT KILL", "TYPE", kind, "SKIPME", "yes")
    return set()


async def destroy_group(client: Client, name: str) -> set[int]:
    """Destroy the group with all it knows of who holds what."""
    with suppress(ResponseError):  # the stream itself may be gone just now
        await client.xgroup_destroy(name, f"{name}_group")
    return set()


async def delete_stream(client: Client, name: str) -> set[int]:
    """Delete the stream, its groups included; gives the bodies that were in it."""
    return await _take_away(client, [name], "DEL", name)


async def flush_all(client: Client, name: str) -> set[int]:
    """Delete everything there is; gives the bodies that were anywhere in the queue."""
    keys, group = QueueKeys(name), f"{name}_group"
    streams = [name, keys.lane(group), keys.dead]
    hashes = [keys.delayed_fields, keys.later(group)]
    return await _take_away(client, [*streams, *hashes], "FLUSHALL")


async def fall_behind(client: Client, name: str, group: str) -> None:
    """Let there be a group that needs everything and reads nothing, unless it is there."""
    with suppress(ResponseError):
        await client.xgroup_create(name, group, "0", mkstream=True)


async def _take_away(client: Client, keys: list[str], *deed: str) -> set[int]:
    bodies: Awaitable[Any] = client.eval(_TAKE_AWAY, len(keys), *keys, *deed)
    return {int(body) for body in await bodies}


async def _on_all(client: Client, command: str, *words: str) -> None:
    where = {}
    if isinstance(client, RedisCluster):
        where["target_nodes"] = RedisCluster.PRIMARIES
    await client.execute_command(command, *words, **where)
