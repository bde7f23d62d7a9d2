"""What the server remembers of a producer, for how long, and what may still be sent again.

It knows the numbers of batches from `low` on; below it nothing may be sent again, and what arrives
late is refused.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._batch import Batch

# An original whose line was given up may still arrive: a closed socket goes on sending what it
# holds for some minutes (Linux `tcp_orphan_retries`), and what is between may hold it, too.
_LEAST = 600.0
# With a long `produce_timeout` so many times that. `retry()` may begin within the first half of it,
# and go on for `produce_timeout`: what is in doubt is sent again within three quarters of it. The
# rest is for renewals, which are late by up to `_RENEW`.
_TIMEOUTS = 4
_MAY_BE_RETRIED = 1 / 2
_MAY_BE_SENT_AGAIN = 3 / 4
# Renewed at most once in this time, which is one server call less for the others.
_RENEW = 60.0
# The server is told of progress in steps of so many batches: one call less for all but one.
_STEP = 16


class Memory:
    """Keep account of one producer's memory on the server."""

    def __init__(self, key: str, produce_timeout: float) -> None:
        """Nothing has been sent.

        Args:
            key: Where the server keeps it.
            produce_timeout: How long a batch may be sent again by itself.
        """
        self._key = key
        self._seconds = max(_LEAST, _TIMEOUTS * produce_timeout)
        self.life_ms: int = int(self._seconds * 1000)
        """How long it lasts when it is renewed."""
        self._renewed = -_RENEW
        # Given up without an answer; alive as long as somebody may still `retry()` it.
        self._uncertain: weakref.WeakValueDictionary[int, Batch] = (
            weakref.WeakValueDictionary()
        )
        self._has_uncertain = False
        self._may_be_late = False

    def renews(self, now: float) -> int:
        """Say whether a batch that is sent now renews it: 1 or 0, as the script has it."""
        if now - self._renewed < _RENEW:
            return 0
        self._renewed = now
        return 1

    def renew_again(self) -> None:
        """Let the next batch renew it: the last renewal may not have been heard."""
        self._renewed = -_RENEW

    def lose(self, batch: Batch) -> None:
        """Take note that a batch was under way on a line that was lost."""
        batch.in_doubt = self._may_be_late = True

    def keep(self, batch: Batch) -> None:
        """Remember a batch that is given up, for as long as somebody may retry it."""
        batch.is_uncertain = self._has_uncertain = True
        self._uncertain[batch.number] = batch

    def drop(self, batch: Batch) -> None:
        """Forget a batch whose answer came after all."""
        self._uncertain.pop(batch.number, None)

    def low(self, unresolved: Mapping[int, Batch], following: int, now: float) -> int:
        """Say below which number nothing is sent again: only those may the server forget.

        Args:
            unresolved: Batches that wait for their answer, by number.
            following: The next number.
            now: The time, by `elapsed`.
        """
        low = next(iter(unresolved), following)
        if self._has_uncertain:  # asking a weak dictionary costs more than all the rest
            self._has_uncertain = bool(self._uncertain)
            for number, batch in self._uncertain.items():
                # An error that is kept for ever must not make the server remember for ever.
                if number in unresolved or self.may_be_retried(batch, now):
                    low = min(low, number)
        return low - low % _STEP

    def may_be_retried(self, batch: Batch, now: float) -> bool:
        """Say whether somebody may still ask for a batch that was given up."""
        return self._is_within(_MAY_BE_RETRIED, batch, now)

    def may_be_sent_again(self, batch: Batch, now: float) -> bool:
        """Say whether the server, which may have stored it, would know it; refused it has not."""
        return not batch.in_doubt or self._is_within(_MAY_BE_SENT_AGAIN, batch, now)

    def _is_within(self, part: float, batch: Batch, now: float) -> bool:
        first = batch.first_sent
        return first is None or now - first <= part * self._seconds

    def last_command(self) -> tuple[bytes | str | int, ...]:
        """Give the command that leaves nothing behind that is not needed any more.

        What was answered on the line it was sent on need not be known. Where a line was lost, what
        was sent on it may still arrive, and is to be known then.
        """
        if self._may_be_late or self._uncertain:
            return b"PEXPIRE", self._key, int(_LEAST * 1000)
        return b"DEL", self._key
