"""A consumer's group: made, made again where it was when it is lost, and known by its life."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._channel import Channel
    from ._held import Held
    from ._member import Member
    from ._stream import Generation, Stream

logger = logging.getLogger("aioredismq")


class Group:
    """What a consumer reads from, and the life it knows it in.

    A group that is gone is made again, unless its life or the queue's was ended on purpose.
    """

    def __init__(
        self,
        stream: Stream,
        channel: Channel,
        member: Member,
        held: Held,
        *,
        latest: bool,
        set_clock: Callable[[float], None],
    ) -> None:
        """Nothing is made before `open()`.

        Args:
            stream: The queue in Redis, open.
            channel: The queue.
            member: The consumer in it.
            held: What that one holds, and keeps when the group is made again.
            latest: Whether a new group begins behind what is stored.
            set_clock: Told the server's time whenever it is known.
        """
        self._stream = stream
        self._channel = channel
        self._member = member
        self._held = held
        self._latest = latest
        self._set_clock = set_clock
        self._generation: Generation | None = None

    async def open(self) -> None:
        """Make it unless it is there.

        Raises:
            ServerError: Redis refuses, or is away.
        """
        self._generation = await self._make("new")
        self._channel.groups.add(self._member.group)
        if self._channel.config.wire == "original":
            await self._report_failover_copies()

    async def mend(self) -> None:
        """Make it again.

        Raises:
            QueueDeletedError: The queue or the group was deleted on purpose.
            ServerError: Redis refuses, or is away.
        """
        self._generation = await self._make("again")
        if self._generation.made:
            name, group = self._stream.keys.name, self._member.group
            logger.warning("group %s of %s was gone: made again", group, name)

    async def follow(self) -> None:
        """Know the life it is in, which others may have begun.

        Raises:
            QueueDeletedError: The one that was known was ended on purpose.
            ServerError: Redis refuses, or is away.
        """
        if self._generation is not None:
            known, group = self._generation, self._member.group
            self._generation = await self._stream.generation(known, group)

    async def _make(self, how: Literal["new", "again"]) -> Generation:
        generation = await self._stream.open_group(
            self._member.group,
            latest=self._latest,
            how=how,
            known=self._generation,
            consumer=self._member.consumer,
            held=self._held.ids(in_lane=False),
            beside=self._channel.groups - {self._member.group},
            rules=self._channel.rules,
        )
        self._set_clock(generation.server_time)
        return generation

    async def _report_failover_copies(self) -> None:
        """Say what the JavaScript library has put aside; the failures themselves still wait.

        It leaves a failed entry pending for ever and copies it. The entry is taken over and
        handled like any abandoned one; handling the copy too would be twice.
        """
        if self._channel.connection.is_cluster:
            return  # it does not work there, and the copies' key is on another node
        copies = await self._stream.failover_copies()
        if copies:
            logger.warning(
                "failover_%s has copies of earlier failures, %d of them: they are left as "
                "they are, "
                "the failures themselves are handled",
                self._stream.keys.name,
                copies,
            )
