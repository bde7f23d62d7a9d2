from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from unittest.mock import AsyncMock, MagicMock

import orjson
import pytest
from typing_extensions import TypeAliasType

from aioredismq import DecodeError, HandlerSignatureError, Message
from aioredismq._codec import Envelope
from aioredismq._handler import bind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from decimal import Decimal

Alias = TypeAliasType("Alias", Message)
Messages = Sequence[Message]


@dataclass
class Order:
    """What some handlers want."""

    id: int


async def body_only(body):
    """Take the body."""
    return ("body", body)


async def typed_body(order: Order) -> object:
    """Take the body, typed."""
    return ("body", order)


async def message_only(message: Message) -> object:
    """Take the message."""
    return ("message", message)


async def body_then_message(order: Order, message: Message) -> object:
    """Take both."""
    return ("body", order, "message", message)


async def message_then_body(m: Message, order: Order) -> object:
    """Take both, the other way round."""
    return ("message", m, "body", order)


async def message_by_name(order: Order, *, message: Message) -> object:
    """Take the message by name only."""
    return ("body", order, "message", message)


async def both_by_name(*, message: Message, order: Order) -> object:
    """Take both by name only."""
    return ("message", message, "body", order)


async def behind_a_default(
    order: Order, retries: int = 3, message: Message | None = None
) -> object:
    """Take the message behind a parameter with a default."""
    return ("body", order, retries, "message", message)


async def message_and_default(message: Message, retries: int = 3) -> object:
    """Take the message, and nothing else."""
    return ("message", message, retries)


async def optional_body(order: Order | None = None, /) -> object:
    """Take the body though there is a default."""
    return ("body", order)


async def annotated(order: Annotated[Order, 1], message: Annotated[Alias, 1]) -> object:
    """Take both, wrapped."""
    return ("body", order, "message", message)


async def batch(messages: list[Message]) -> object:
    """Take a batch."""
    return ("messages", messages)


async def batch_of_sequence(
    messages: Annotated[Messages, 1], dry: bool = False
) -> object:
    """Take a batch, otherwise written."""
    return ("messages", messages, dry)


async def batch_by_name(*, messages: list[Message]) -> object:
    """Take a batch by name only."""
    return ("messages", messages)


async def anything(*args: Any, **kwargs: Any) -> object:
    """Take whatever there is."""
    return (*args, kwargs)


async def anything_after(
    message: Message, *rest: int, key: int = 1, **kwargs: Any
) -> object:
    """Take whatever there is, behind the message."""
    return ("message", message, rest, key, kwargs)


async def unrelated_return(body: Order) -> Decimal:
    """Return what is imported for type checkers only."""
    return body  # type: ignore[return-value]  # -- never looked at


def plain(order: Order) -> object:
    """Run in a thread."""
    return ("body", order)


async def configured(factor: int, order: Order, message: Message) -> object:
    """Be given its first argument beforehand."""
    return (factor, "body", order, "message", message)


async def labelled(order: Order, label: str) -> object:
    """Be given its last argument beforehand."""
    return ("body", order, label)


def decorated(
    handler: Callable[..., Awaitable[object]],
) -> Callable[..., Awaitable[object]]:
    """Wrap a handler as decorators do."""

    @functools.wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> object:
        return ("wrapped", await handler(*args, **kwargs))

    return wrapper


class Service:
    """Handlers that are methods, and an object that is one."""

    async def method(self, order: Order, message: Message) -> object:
        """Take both."""
        return ("body", order, "message", message)

    @classmethod
    async def class_method(cls, order: Order) -> object:
        """Take the body."""
        return ("body", order)

    @staticmethod
    async def static_method(order: Order) -> object:
        """Take the body."""
        return ("body", order)

    async def __call__(self, message: Message, order: Order) -> object:
        """Take both."""
        return ("message", message, "body", order)


class Plain:
    """An object that is a handler for a thread."""

    def __call__(self, order: Order) -> object:
        """Take the body."""
        return ("body", order)


class Wants(NamedTuple):
    """What is expected of a binding."""

    parts: str
    result: object
    name: str
    is_async: bool = True


HERE = __name__
ORDER, MESSAGE = Order(7), object()


@pytest.mark.parametrize(
    ("handler", "wants"),
    [
        (body_only, Wants("body", ("body", ORDER), f"{HERE}.body_only")),
        (typed_body, Wants("body", ("body", ORDER), f"{HERE}.typed_body")),
        (message_only, Wants("message", ("message", MESSAGE), f"{HERE}.message_only")),
        (
            body_then_message,
            Wants(
                "body message",
                ("body", ORDER, "message", MESSAGE),
                f"{HERE}.body_then_message",
            ),
        ),
        (
            message_then_body,
            Wants(
                "body message",
                ("message", MESSAGE, "body", ORDER),
                f"{HERE}.message_then_body",
            ),
        ),
        (
            message_by_name,
            Wants(
                "body message",
                ("body", ORDER, "message", MESSAGE),
                f"{HERE}.message_by_name",
            ),
        ),
        (
            both_by_name,
            Wants(
                "body message",
                ("message", MESSAGE, "body", ORDER),
                f"{HERE}.both_by_name",
            ),
        ),
        (
            behind_a_default,
            Wants(
                "body message",
                ("body", ORDER, 3, "message", MESSAGE),
                f"{HERE}.behind_a_default",
            ),
        ),
        (
            message_and_default,
            Wants("message", ("message", MESSAGE, 3), f"{HERE}.message_and_default"),
        ),
        (optional_body, Wants("body", ("body", ORDER), f"{HERE}.optional_body")),
        (
            annotated,
            Wants(
                "body message", ("body", ORDER, "message", MESSAGE), f"{HERE}.annotated"
            ),
        ),
        (batch, Wants("batch", ("messages", ORDER), f"{HERE}.batch")),
        (
            batch_of_sequence,
            Wants("batch", ("messages", ORDER, False), f"{HERE}.batch_of_sequence"),
        ),
        (batch_by_name, Wants("batch", ("messages", ORDER), f"{HERE}.batch_by_name")),
        (anything, Wants("body", (ORDER, {}), f"{HERE}.anything")),
        (
            anything_after,
            Wants("message", ("message", MESSAGE, (), 1, {}), f"{HERE}.anything_after"),
        ),
        (unrelated_return, Wants("body", ORDER, f"{HERE}.unrelated_return")),
        (plain, Wants("body", ("body", ORDER), f"{HERE}.plain", is_async=False)),
        (
            functools.partial(configured, 3),
            Wants(
                "body message",
                (3, "body", ORDER, "message", MESSAGE),
                f"{HERE}.configured",
            ),
        ),
        (
            functools.partial(configured, factor=3),
            Wants(
                "body message",
                (3, "body", ORDER, "message", MESSAGE),
                f"{HERE}.configured",
            ),
        ),
        (
            functools.partial(labelled, label="a"),
            Wants("body", ("body", ORDER, "a"), f"{HERE}.labelled"),
        ),
        (
            functools.partial(functools.partial(configured), 3),
            Wants(
                "body message",
                (3, "body", ORDER, "message", MESSAGE),
                f"{HERE}.configured",
            ),
        ),
        (
            functools.partial(plain),
            Wants("body", ("body", ORDER), f"{HERE}.plain", is_async=False),
        ),
        (
            decorated(message_then_body),
            Wants(
                "body message",
                ("wrapped", ("message", MESSAGE, "body", ORDER)),
                f"{HERE}.message_then_body",
            ),
        ),
        (
            decorated(decorated(typed_body)),
            Wants(
                "body", ("wrapped", ("wrapped", ("body", ORDER))), f"{HERE}.typed_body"
            ),
        ),
        (
            decorated(functools.partial(configured, 3)),
            Wants(
                "body message",
                ("wrapped", (3, "body", ORDER, "message", MESSAGE)),
                "functools.decorated.<locals>.wrapper",
            ),
        ),
        (
            decorated(Service()),
            Wants(
                "body message",
                ("wrapped", ("message", MESSAGE, "body", ORDER)),
                f"{HERE}.decorated.<locals>.wrapper",
            ),
        ),
        (
            decorated(Service().method),
            Wants(
                "body message",
                ("wrapped", ("body", ORDER, "message", MESSAGE)),
                f"{HERE}.Service.method",
            ),
        ),
        (
            Service().method,
            Wants(
                "body message",
                ("body", ORDER, "message", MESSAGE),
                f"{HERE}.Service.method",
            ),
        ),
        (
            Service.class_method,
            Wants("body", ("body", ORDER), f"{HERE}.Service.class_method"),
        ),
        (
            Service.static_method,
            Wants("body", ("body", ORDER), f"{HERE}.Service.static_method"),
        ),
        (
            Service(),
            Wants(
                "body message", ("message", MESSAGE, "body", ORDER), f"{HERE}.Service"
            ),
        ),
        (
            functools.partial(Service()),
            Wants(
                "body message", ("message", MESSAGE, "body", ORDER), f"{HERE}.Service"
            ),
        ),
        (
            functools.partial(Service().method),
            Wants(
                "body message",
                ("body", ORDER, "message", MESSAGE),
                f"{HERE}.Service.method",
            ),
        ),
        (Plain(), Wants("body", ("body", ORDER), f"{HERE}.Plain", is_async=False)),
        (lambda body: body, Wants("body", ORDER, f"{HERE}.<lambda>", is_async=False)),
        (AsyncMock(return_value=1), Wants("body", 1, "unittest.mock.AsyncMock")),
        (
            MagicMock(return_value=1),
            Wants("body", 1, "unittest.mock.MagicMock", is_async=False),
        ),
        (print, Wants("body", None, "builtins.print", is_async=False)),
        (str, Wants("body", "Order(id=7)", "builtins.str", is_async=False)),
        ([].append, Wants("body", None, "builtins.list.append", is_async=False)),
        (Order, Wants("body", Order(ORDER), f"{HERE}.Order", is_async=False)),
    ],
)
async def test_a_handler_gets_what_it_asks_for(
    handler: Callable[..., Any], wants: Wants
) -> None:
    """Body, message or both, where its parameters stand."""
    binding = bind(handler)

    result = binding.call(ORDER, MESSAGE)

    assert inspect.isawaitable(result) is binding.is_async is wants.is_async
    assert (await result if binding.is_async else result) == wants.result
    assert binding.is_batch is (wants.parts == "batch")
    assert binding.wants_body is ("body" in wants.parts)
    assert binding.wants_message is ("message" in wants.parts)
    assert binding.handler is handler
    assert binding.name == wants.name


def test_a_handler_of_body_and_message_is_called_directly() -> None:
    """Nothing stands between on the fastest path."""
    assert bind(body_then_message).call is body_then_message


@pytest.mark.parametrize(
    ("handler", "body"),
    [
        (body_only, {"id": 7}),
        (typed_body, Order(7)),
        (message_then_body, Order(7)),
        (both_by_name, Order(7)),
        (annotated, Order(7)),
        (optional_body, Order(7)),
        (functools.partial(configured, factor=3), Order(7)),
        (decorated(typed_body), Order(7)),
        (Service(), Order(7)),
        (message_only, {"id": 7}),
        (batch, {"id": 7}),
        (print, {"id": 7}),
        (Order, 7),
    ],
)
def test_the_body_is_read_into_what_its_annotation_says(
    handler: Callable[..., Any], body: object
) -> None:
    """By content type where there is none."""
    raw = b"7" if handler is Order else b'{"id":7}'

    assert bind(handler).decode(Envelope(raw, "application/json", {}, {})) == body


def test_a_body_that_does_not_fit_is_refused() -> None:
    """By the binding's decode, before the handler is called."""
    with pytest.raises(DecodeError, match=r"^body\.id: expected int, got str$"):
        bind(typed_body).decode(Envelope(b'{"id":"7"}', "application/json", {}, {}))


def test_another_decoder_is_used() -> None:
    """For this handler's bodies."""
    binding = bind(body_only, loads=lambda raw: [orjson.loads(raw)])

    assert binding.decode(Envelope(b"1", "application/json", {}, {})) == [1]


def test_rest_parameters_may_be_typed() -> None:
    """What is passed first is the body."""

    def handler(*orders: Order) -> None: ...

    assert bind(handler).decode(
        Envelope(b'{"id":7}', "application/json", {}, {})
    ) == Order(7)


def test_types_of_a_running_function_are_known() -> None:
    """A handler is often made inside a test or an application factory."""

    @dataclass
    class Local:
        id: int

    async def handler(body: Local) -> None: ...

    class Inner:
        async def method(self, body: list[Local]) -> None: ...

    opened = Envelope(b'{"id":7}', "application/json", {}, {})
    assert bind(handler).decode(opened) == Local(7)
    opened = Envelope(b'[{"id":7}]', "application/json", {}, {})
    assert bind(Inner().method).decode(opened) == [Local(7)]


def test_a_binding_cannot_be_changed() -> None:
    """It is shared by all workers."""
    with pytest.raises(FrozenInstanceError):
        bind(plain).name = "other"  # type: ignore[misc]  # -- that is what is tested


def generator(body: Order):
    """Do not return."""
    yield body  # pragma: no cover -- never called


async def async_generator(body: Order):
    """Do not return."""
    yield body  # pragma: no cover -- never called


class GeneratorObject:
    """An object that does not return."""

    async def __call__(self, body: Order):
        """Do not return."""
        yield body  # pragma: no cover -- never called


def takes_nothing() -> None:
    """Get nothing."""


def only_names(*, retries: int = 3, **kwargs: Any) -> None:
    """Get nothing either."""


def two_bodies(body: Order, db: Any) -> None:
    """Ask for what is not there."""


def two_messages(first: Message, second: Message) -> None:
    """Ask for the same twice."""


def batch_and_more(messages: list[Message], body: Order) -> None:
    """Ask for a batch and a body."""


def body_and_batch(body: Order, messages: list[Message]) -> None:
    """Ask for a body and a batch."""


def two_batches(messages: list[Message], more: list[Message]) -> None:
    """Ask for a batch twice."""


def required_name(body: Order, *, db: Any) -> None:
    """Ask for what is not there by name."""


def unreachable(
    body: Order, retries: int = 3, message: Message | None = None, /
) -> None:
    """Ask for a message where it cannot be passed."""


def unknown(body: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821 -- that is what is tested
    """Ask for what is not defined."""


def for_checkers(total: Decimal) -> None:
    """Ask for what is imported for type checkers only."""


def unsupported(body: complex) -> None:
    """Ask for what JSON does not have."""


RULE = (
    "a handler takes the body, a parameter annotated Message, or both, in any order; or one "
    "list[Message]; every other parameter needs a default"
)


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (5, "a handler must be callable, got 5"),
        (
            generator,
            f"{HERE}.generator is a generator: a handler returns when the message is handled",
        ),
        (async_generator, f"{HERE}.async_generator is a generator: a handler returns"),
        (
            functools.partial(generator),
            f"{HERE}.generator is a generator: a handler returns",
        ),
        (
            GeneratorObject(),
            f"{HERE}.GeneratorObject is a generator: a handler returns",
        ),
        (takes_nothing, f"{HERE}.takes_nothing takes nothing: {RULE}"),
        (only_names, f"{HERE}.only_names takes nothing: {RULE}"),
        (two_bodies, f"{HERE}.two_bodies: nothing to pass as 'db': {RULE}"),
        (two_messages, f"{HERE}.two_messages: nothing to pass as 'second': {RULE}"),
        (batch_and_more, f"{HERE}.batch_and_more: nothing to pass as 'body': {RULE}"),
        (
            body_and_batch,
            f"{HERE}.body_and_batch: nothing to pass as 'messages': {RULE}",
        ),
        (two_batches, f"{HERE}.two_batches: nothing to pass as 'more': {RULE}"),
        (required_name, f"{HERE}.required_name: nothing to pass as 'db': {RULE}"),
        (unreachable, f"{HERE}.unreachable: nothing to pass as 'message': {RULE}"),
        (Service.method, f"{HERE}.Service.method: nothing to pass as 'order': {RULE}"),
        (
            unknown,
            "annotation 'Missing' of 'body' in unknown cannot be resolved: name 'Missing' is",
        ),
        (
            for_checkers,
            "annotation 'Decimal' of 'total' in for_checkers cannot be resolved: name",
        ),
        (
            unsupported,
            f"{HERE}.unsupported: cannot decode a body into complex: supported are",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_at_registration(
    handler: Any, text: str
) -> None:
    """With the function, the parameter and the rule."""
    with pytest.raises(HandlerSignatureError) as caught:
        bind(handler)

    assert str(caught.value).startswith(text)


def test_annotations_that_fail_only_when_asked_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From Python 3.14 on they are evaluated when the signature is."""

    def signature(_: object) -> None:
        raise NameError("name 'Missing' is not defined")

    monkeypatch.setattr(inspect, "signature", signature)

    with pytest.raises(
        HandlerSignatureError, match=r"plain cannot be resolved: name 'Missing'"
    ):
        bind(plain)
