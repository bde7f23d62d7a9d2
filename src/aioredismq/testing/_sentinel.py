"""A replicated server watched by Sentinels, as child processes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ._server import HOST, RedisServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self


class _Sentinel(RedisServer):
    """The same program in its other mode: it lives by a file that it rewrites."""

    def __init__(self, path: str | Path | None, settings: str) -> None:
        """Describe it.

        Args:
            path: The program.
            settings: What the file says at the first start.
        """
        super().__init__(path)
        self._settings = settings

    def _prepare_directory(self) -> None:
        """Write the file, unless a Sentinel that runs again has left what it knows."""
        super()._prepare_directory()
        file = self.directory / "sentinel.conf"
        if not file.exists():
            file.write_text(self._settings)

    def _command_line(self) -> list[str]:
        """Name the file first, and none of the options only a data server knows."""
        return [
            str(self.directory / "sentinel.conf"),
            *("--port", str(self.port), "--bind", HOST, "--dir", str(self.directory)),
            "--sentinel",
        ]


class SentinelSet:
    """A master, its replicas and the Sentinels that watch them, up in two to three seconds.

    Use it as a context manager, or call `start()` and `stop()`.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        service: str = "mymaster",
        replicas: int = 1,
        sentinels: int = 3,
        down_after: float = 1.0,
        args: Sequence[str] = (),
    ) -> None:
        """Describe the set; nothing is started yet.

        Args:
            path: The server program; None for the first of `find_servers()`.
            service: The name under which the Sentinels know the master.
            replicas: How many may take its place.
            sentinels: How many watch; more than half must agree that the master is down.
            down_after: Seconds of silence after which a Sentinel takes the master for down.
            args: More options for the master and the replicas.
        """
        self.service: str = service
        """The name under which the Sentinels know the master."""
        self.sentinels: tuple[RedisServer, ...] = ()
        """The Sentinels, once started."""
        self.nodes: tuple[RedisServer, ...] = ()
        """The data servers once started, the first master in front."""
        self._path = path
        self._replica_count = replicas
        self._sentinel_count = sentinels
        self._down_after = down_after
        self._args = ("--repl-diskless-sync-delay", "0", *args)
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
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each Sentinel."""
        return [(HOST, sentinel.port) for sentinel in self.sentinels]

    @property
    def url(self) -> str:
        """What `Connection` takes: `redis+sentinel://host:port,host:port/service/0`."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.addresses)
        return f"redis+sentinel://{hosts}/{self.service}/0"

    @property
    def master(self) -> RedisServer:
        """The data server that the Sentinels name as master now."""
        asked = next(sentinel for sentinel in self.sentinels if sentinel.is_running)
        address = asked.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        assert isinstance(address, list)
        return next(node for node in self.nodes if node.port == int(address[1]))

    def start(self) -> None:
        """Start all, and wait until every Sentinel knows the replicas and the other Sentinels.

        Raises:
            ServerStartError: One of them did not start, or they did not agree within 20 seconds.
        """
        with ExitStack() as starting:
            master = starting.enter_context(RedisServer(self._path, args=self._args))
            follow = ("--replicaof", HOST, str(master.port), *self._args)
            replicas = [
                starting.enter_context(RedisServer(self._path, args=follow))
                for _ in range(self._replica_count)
            ]
            settings = self._settings(master.port)
            wait_until("the replicas to be in step", lambda: _are_in_step(replicas))
            self.sentinels = tuple(
                starting.enter_context(_Sentinel(self._path, settings))
                for _ in range(self._sentinel_count)
            )
            self.nodes = (master, *replicas)
            wait_until("the Sentinels to agree", self._is_agreed)
            self._running = starting.pop_all()

    def stop(self) -> None:
        """End all of them; may be repeated."""
        self._running.close()

    def failover(self) -> None:
        """Have the Sentinels make a replica the master, as in planned maintenance, and wait.

        Raises:
            ServerStartError: They found no replica fit for it, or it did not take over, within 20
                seconds each.
        """
        before = self.master
        asked = next(sentinel for sentinel in self.sentinels if sentinel.is_running)
        # Refused while the replica has not been heard of for a moment.
        wait_until(
            "a replica fit to be the master",
            lambda: asked.command("SENTINEL", "FAILOVER", self.service) == "OK",
        )
        wait_until("another master", lambda: self.master is not before)

    def _settings(self, port: int) -> str:
        """Write what a Sentinel must know at its first start."""
        quorum = self._sentinel_count // 2 + 1
        return (
            f"sentinel monitor {self.service} {HOST} {port} {quorum}\n"
            f"sentinel down-after-milliseconds {self.service} {self._down_after * 1000:.0f}\n"
            f"sentinel failover-timeout {self.service} 5000\n"
            f"sentinel parallel-syncs {self.service} 1\n"
        )

    def _is_agreed(self) -> bool:
        """Say whether every Sentinel has found the replicas and the other Sentinels."""
        expected = (str(self._replica_count), str(self._sentinel_count - 1))
        for sentinel in self.sentinels:
            flat = sentinel.command("SENTINEL", "MASTER", self.service)
            assert isinstance(flat, list)
            about = dict(zip(flat[::2], flat[1::2], strict=True))
            if (about["num-slaves"], about["num-other-sentinels"]) != expected:
                return False
        return True


def _are_in_step(replicas: Sequence[RedisServer]) -> bool:
    """Say whether every replica follows its master."""
    return all(
        "master_link_status:up" in str(replica.command("INFO", "replication"))
        for replica in replicas
    )
