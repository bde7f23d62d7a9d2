"""What goes wrong with a server that is started here."""

from __future__ import annotations

from aioredismq._errors import MessageQueueError


class ServerStartError(MessageQueueError):
    """A server (or a set of them) did not start; the text has its own last words.

    Whatever had been started for it has been ended again. Trying again is safe.
    """


class NoServerFoundError(ServerStartError):
    """This machine has no server program to start; the text says what to install."""
