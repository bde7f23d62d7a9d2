"""A Redis Cluster as child processes."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import redis

from ._server import RedisServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self


_SLOTS = 16_384


class ClusterNodes:
    """A Redis Cluster of child processes on loopback ports, up in two to three seconds.

    Use it as a context manager, or call `start()` and `stop()`.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        masters: int = 3,
        replicas: int = 1,
        node_timeout: float = 2.0,
        args: Sequence[str] = (),
    ) -> None:
        """Describe the cluster; nothing is started yet.

        Args:
            path: The server program; None for the first of `find_servers()`.
            masters: Nodes that share the slots; a failover needs a majority of them alive.
            replicas: Replicas of each.
            node_timeout: Seconds of silence after which a node is taken for dead.
            args: More options for every node.
        """
        self._masters = masters
        self._replicas = replicas
        options = [
            *("--cluster-enabled", "yes"),
            *("--cluster-config-file", "nodes.conf"),
            *("--cluster-node-timeout", str(round(node_timeout * 1000))),
            *("--repl-diskless-sync-delay", "0"),
        ]
        self.nodes: tuple[RedisServer, ...] = tuple(
            RedisServer(path, args=[*options, *args])
            for _ in range(masters * (1 + replicas))
        )
        """Every node, the first masters in front; a failover does not reorder them."""
        self._running = ExitStack()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()

    @property
    def url(self) -> str:
        """What a client connects to first: the first node."""
        return self.nodes[0].url

    def start(self) -> None:
        """Start the nodes, share out the slots and wait until every node agrees.

        Raises:
            ServerStartError: A node did not start, or they did not agree within 20 seconds.
        """
        with ExitStack() as starting:
            for node in self.nodes:
                starting.enter_context(node)
            self._share_slots()
            self._introduce()
            self._attach_replicas()
            wait_until("the cluster to be ok", self._is_ok)
            self._running = starting.pop_all()

    def stop(self) -> None:
        """End all nodes; may be repeated."""
        self._running.close()

    def master_of(self, key: str) -> RedisServer:
        """Find the node that serves a key now, after a failover too."""
        slot = int(str(self._any().command("CLUSTER", "KEYSLOT", key)))
        shards = self._any().command("CLUSTER", "SLOTS")
        assert isinstance(shards, list)
        [port] = [int(at[1]) for low, high, at, *_ in shards if low <= slot <= high]
        return next(node for node in self.nodes if node.port == port)

    def _any(self) -> RedisServer:
        """Choose a node that can be asked."""
        return next(node for node in self.nodes if node.is_running)

    def _share_slots(self) -> None:
        """Give each master its part of the slots, and an epoch of its own."""
        for index, node in enumerate(self.nodes[: self._masters]):
            first = index * _SLOTS // self._masters
            last = (index + 1) * _SLOTS // self._masters - 1
            try:
                node.command("CLUSTER", "ADDSLOTSRANGE", first, last)
            except redis.ResponseError:  # pragma: no cover -- 6.2 takes them one by one
                node.command("CLUSTER", "ADDSLOTS", *range(first, last + 1))
            node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)

    def _introduce(self) -> None:
        """Let every node know every other."""
        first, *others = self.nodes
        for node in others:
            first.command("CLUSTER", "MEET", "127.0.0.1", node.port)
        known = f"cluster_known_nodes:{len(self.nodes)}"
        wait_until(
            "the nodes to know each other",
            lambda: all(
                known in str(node.command("CLUSTER", "INFO")) for node in self.nodes
            ),
        )

    def _attach_replicas(self) -> None:
        """Make the remaining nodes replicas, in turn of one master and the next."""
        for index, node in enumerate(self.nodes[self._masters :]):
            master = str(self.nodes[index % self._masters].command("CLUSTER", "MYID"))
            wait_until(f"{node} to know its master", partial(_follow, node, master))

    def _is_ok(self) -> bool:
        """Say whether every node sees the whole cluster, and every replica its master."""
        return all(
            "cluster_state:ok" in str(node.command("CLUSTER", "INFO"))
            for node in self.nodes
        ) and all(
            "master_link_status:up" in str(node.command("INFO", "replication"))
            for node in self.nodes[self._masters :]
        )


def _follow(node: RedisServer, master: str) -> bool:
    """Make a node the replica of a master; refused until it has heard of that master."""
    return node.command("CLUSTER", "REPLICATE", master) == "OK"
