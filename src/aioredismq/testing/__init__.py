"""Real servers as child processes, for tests and for trying things out.

    from aioredismq.testing import RedisServer

    with RedisServer() as server:
        queue = RedisMessageQueue("orders", server.url)

`SentinelSet` and `ClusterNodes` are used the same way; `find_servers()` says which server
programs this machine has; `FaultyLine` stands in front of a server and fails on demand. Nothing
here is imported by the rest of the package, and nothing is left behind: the servers and their
directories go with the process that made them, however it ends.
"""

from ._cluster import ClusterNodes
from ._errors import NoServerFoundError, ServerStartError
from ._find import find_servers
from ._line import FaultyLine
from ._sentinel import SentinelSet
from ._server import RedisServer

__all__ = [
    "ClusterNodes",
    "FaultyLine",
    "NoServerFoundError",
    "RedisServer",
    "SentinelSet",
    "ServerStartError",
    "find_servers",
]

for _public in (  # so that no traceback shows a private room
    ClusterNodes,
    FaultyLine,
    NoServerFoundError,
    RedisServer,
    SentinelSet,
    ServerStartError,
    find_servers,
):
    _public.__module__ = __name__
