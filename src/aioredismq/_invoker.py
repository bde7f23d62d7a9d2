"""One handler on one entry or one batch: decode, call, and decide what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

from anyio import CancelScope, CapacityLimiter, current_effective_deadline
from anyio.to_thread import run_sync

from . import _history as history
from ._codec import decoder, is_original_marker, open_envelope, open_original
from ._errors import DecodeError, RejectMessage, RetryMessage
from ._message import Message
from ._outcome import (
    Ack,
    DeadLetter,
    Failure,
    Outcome,
    Release,
    decide,
    describe,
    is_failure,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._codec import Envelope
    from ._config import ConsumerConfig
    from ._handler import Binding
    from ._message import Entry, Leases

logger = logging.getLogger("aioredismq")

# Stands for the failure of a batch whose handler was cancelled from outside.
_CUT_OFF = asyncio.CancelledError()


class _LeaseLostError(Exception):
    """The handler was cancelled because its message is somebody else's now."""


class Invoker:
    """Run one handler and settle what it was given. Raises nothing the handler raises."""

    def __init__(
        self,
        binding: Binding,
        config: ConsumerConfig,
        *,
        queue: str,
        group: str,
        original: bool,
        ack: Callable[[Entry], None],
        settle: Callable[[Entry, Outcome], None],
        leases: Leases,
        now: Callable[[], float | None],
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Nothing runs yet.

        Args:
            binding: The handler, and what it wants.
            config: Attempts, policy, time limit.
            queue: Name of the queue, for messages.
            group: Name of the group, for messages.
            original: Whether entries are the JavaScript library's.
            ack: Acknowledges an entry.
            settle: Does what an outcome says with an entry.
            leases: Knows how long an entry is still this consumer's.
            now: Tells the server's time, in seconds since the epoch; None when not known yet.
            is_cancelled: Says whether the consumer was cancelled with all its tasks.
        """
        self._binding = binding
        self._config = config
        self._queue = queue
        self._group = group
        self._open: Callable[[list[bytes]], Envelope] = (
            open_original if original else open_envelope
        )
        self._ack = ack
        self._settle = settle
        self._leases = leases
        self._now = now
        self._is_cancelled = is_cancelled
        # Kept only where a lost lease cancels: it costs some microseconds a message.
        self._running: dict[Entry, CancelScope] | None = (
            {} if config.on_lost_lease == "cancel" else None
        )
        self._decode = binding.decode
        self._by_content = decoder(None, config.loads)
        # A limiter of its own, as wide as the consumer: other threads of the application neither
        # wait for handlers nor hold them up.
        self._threads = (
            None if binding.is_async else CapacityLimiter(config.concurrency)
        )
        self._original = original
        # The plain case has no time limit, no thread and nothing to cancel: two coroutines less
        # for each message.
        is_plain = binding.is_async and config.handler_timeout is None
        self._call_at_once = (
            binding.call if is_plain and self._running is None else None
        )
        self._handle = self._handle_batch if binding.is_batch else self._handle_one

    def message(
        self, entry: Entry, settle: Callable[[BaseException | None], None] | None = None
    ) -> Message:
        """Make what a handler gets of an entry."""
        envelope = self._open(entry.fields)
        decode = self._decode if self._binding.wants_body else self._by_content
        return Message(
            id=history.message_id(entry),
            raw=envelope.raw or b"",
            headers=envelope.headers,
            content_type=envelope.content_type,
            attempt=history.attempts_made(entry) + 1,
            queue=self._queue,
            group=self._group,
            decode=lambda: decode(envelope),
            settle=settle,
            entry=entry,
            leases=self._leases,
            reserved=envelope.meta,
        )

    def lease_lost(self, entry_id: bytes, in_lane: bool) -> None:
        """Cancel the handler of an entry that is somebody else's now, if it is to be."""
        for entry, scope in (self._running or {}).items():
            if entry.id == entry_id and entry.in_lane is in_lane:
                scope.cancel()

    def run(self, portion: list[Entry]) -> Awaitable[None]:
        """Run the handler on entries and settle each of them."""
        if self._original or len(portion) > 1 or len(portion[0].fields) > 2:
            return self._handle_some(portion)
        return self._handle(portion)

    async def _handle_some(self, portion: list[Entry]) -> None:
        wanted = [entry for entry in portion if not self._settles_unhandled(entry)]
        if wanted:
            await self._handle(wanted)

    def _settles_unhandled(self, entry: Entry) -> bool:
        outcome = self.unhandled(entry)
        if outcome is None:
            return False
        self._settle(entry, outcome)
        return True

    def unhandled(self, entry: Entry) -> Outcome | None:
        """Say what becomes of an entry nobody is to see; None: it is to be handled.

        Those are expired messages, and markers of the JavaScript library.
        """
        if self._original and is_original_marker(entry.fields):
            return Ack()
        until = history.expires_at(entry)
        now = self._now()
        if until is None or now is None or now < until:
            return None
        if self._config.expired == "drop":
            return Ack()
        detail = f"expired {now - until:.3f} s before it could be handled"
        return DeadLetter(Failure("expired", detail))

    # -- one entry -----------------------------------------------------------------------------

    async def _handle_one(self, portion: list[Entry]) -> None:
        entry = portion[0]
        binding = self._binding
        by_hand: list[BaseException | None] = []
        outcome: Outcome = Release()  # what is cut off is handed back
        message: Message | None = None
        try:
            message = (
                self.message(entry, by_hand.append) if binding.wants_message else None
            )
            body = (
                self._decode(self._open(entry.fields)) if binding.wants_body else None
            )
            if self._call_at_once is None:
                await self._call_while_held(portion, body, message)
            else:
                await self._call_at_once(body, message)
            outcome = Ack()
        except _LeaseLostError:
            pass  # somebody else's now: handing it back will find that out
        except BaseException as error:
            if self._ends_more(error):
                raise
            outcome = self.decide(error, entry)
        finally:
            if message is not None:
                outcome = self._close(message, by_hand, outcome, entry)
            if type(outcome) is Ack:
                self._ack(entry)
            else:
                self._settle(entry, outcome)

    def _close(
        self,
        message: Message,
        by_hand: list[BaseException | None],
        outcome: Outcome,
        entry: Entry,
    ) -> Outcome:
        """Let the message be settled by hand no more; what was settled by hand counts."""
        message.close()
        if not by_hand:
            return outcome
        [error] = by_hand
        if error is None:
            return Ack()
        return self.decide(error, entry) if is_failure(error) else outcome

    async def _call_while_held(
        self, portion: list[Entry], body: Any, message: Message | None
    ) -> None:
        """Call the handler, to be cancelled when the lease of what it was given is lost."""
        if self._running is None:
            return await self._call(body, message)
        with CancelScope() as scope:
            self._running.update(dict.fromkeys(portion, scope))
            try:
                return await self._call(body, message)
            finally:
                for entry in portion:
                    del self._running[entry]
        raise _LeaseLostError

    # -- a batch -------------------------------------------------------------------------------

    async def _handle_batch(self, portion: list[Entry]) -> None:
        messages: list[Message] = []
        unsettled: dict[int, Entry] = {}
        for entry in portion:
            unsettled[len(messages)] = entry
            settle = self._settler_of(len(messages), unsettled)
            messages.append(self.message(entry, settle))
        failure: BaseException | None = _CUT_OFF
        try:
            await self._call_while_held(portion, messages, None)
            failure = None
        except _LeaseLostError:
            pass  # what is still this consumer's is handed back
        except BaseException as error:
            if self._ends_more(error):
                raise
            failure = error
        finally:
            rest = dict(unsettled)
            unsettled.clear()  # a thread that was left behind settles nothing more
            for at, entry in rest.items():
                messages[at].close()
                self._settle(entry, self._batch_outcome(failure, messages[at], entry))

    def _batch_outcome(
        self, failure: BaseException | None, message: Message, entry: Entry
    ) -> Outcome:
        """Say what becomes of a message its batch handler has not settled by itself."""
        if failure is None:
            return Ack()
        if failure is _CUT_OFF:
            return Release()
        if isinstance(failure, DecodeError) and message.broken is None:
            return Release()  # another message of the batch could not be read
        return self.decide(message.broken or failure, entry)

    def _settler_of(
        self, at: int, unsettled: dict[int, Entry]
    ) -> Callable[[BaseException | None], None]:
        def settle(error: BaseException | None) -> None:
            if error is not None and not is_failure(error):
                return  # cancelled: what ends the handler says what becomes of it
            entry = unsettled.pop(at, None)
            if entry is not None:
                outcome = Ack() if error is None else self.decide(error, entry)
                self._settle(entry, outcome)

        if self._threads is None:
            return settle
        # A handler in a thread settles in the event loop all the same: nothing here is locked.
        loop = asyncio.get_running_loop()

        def settle_from_thread(error: BaseException | None) -> None:
            loop.call_soon_threadsafe(settle, error)

        return settle_from_thread

    # ------------------------------------------------------------------------------------------

    async def _call(self, body: Any, message: Message | None) -> None:
        binding = self._binding
        limit = self._config.handler_timeout
        if limit is None:
            if binding.is_async:
                await binding.call(body, message)
            else:
                await self._call_in_thread(body, message)
            return
        try:
            async with asyncio.timeout(limit) as timer:
                if binding.is_async:
                    await binding.call(body, message)
                else:
                    await self._call_in_thread(body, message)
        except TimeoutError as error:
            if not timer.expired():
                raise
            msg = f"the handler ran longer than handler_timeout ({limit:g} s)"
            raise TimeoutError(msg) from error

    async def _call_in_thread(self, body: Any, message: Message | None) -> None:
        result = await run_sync(
            self._binding.call,
            body,
            message,
            abandon_on_cancel=True,
            limiter=self._threads,
        )
        if asyncio.iscoroutine(result):
            # A callable that only turns out to be asynchronous when it is called.
            await result

    def decide(self, error: BaseException, entry: Entry) -> Outcome:
        """Say what becomes of a message that failed, and log it."""
        attempt = history.attempts_made(entry) + 1
        outcome = decide(error, attempt, self._config.retry, self._config.max_attempts)
        final = isinstance(outcome, DeadLetter)
        steering = (RetryMessage, RejectMessage)
        logger.log(
            logging.WARNING,
            "message %s of %s failed in attempt %d (%s), %s: %s",
            history.message_id(entry),
            self._queue,
            attempt,
            self._binding.name,
            "for good" if final else "will be tried again",
            describe(error),
            # A traceback once, when nothing more is tried; steering needs none.
            exc_info=error if final and not isinstance(error, steering) else None,
        )
        return outcome

    def _ends_more(self, error: BaseException) -> bool:
        """Tell what ends the worker or the process from what a handler has failed by.

        Cancelled from outside, a message is handed back. A handler may also end with a cancellation
        of its own making (a task it awaited was cancelled, or it cancelled its own, so counting
        would not do): that is a failure like any other, and must not end the worker.
        """
        if isinstance(error, asyncio.CancelledError):
            return current_effective_deadline() == -math.inf or self._is_cancelled()
        return not is_failure(error)
