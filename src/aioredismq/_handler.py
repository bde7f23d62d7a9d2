"""What a handler wants, read once from its signature."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_origin

from ._codec import decoder
from ._errors import HandlerSignatureError
from ._hints import bare, members, resolve
from ._message import Message

if TYPE_CHECKING:
    from inspect import Parameter

    from ._codec import Envelope

Call: TypeAlias = Callable[[Any, Any], Any]

_RULE = (
    "a handler takes the body, a parameter annotated Message, or both, in any order; "
    "or one list[Message]; every other parameter needs a default"
)
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_LISTS = (list, collections.abc.Sequence)


@dataclass(frozen=True, slots=True)
class Binding:
    """A handler, and how to call it.

    Attributes:
        handler: As it was registered.
        name: For logs: module and qualified name.
        is_async: Whether calling it gives something to await; otherwise it belongs in a thread.
        is_batch: Whether it takes a list of messages; `call` then gets that list as its first
            argument.
        wants_body: Whether the body must be decoded for it.
        wants_message: Whether it takes the message.
        decode: Reads the body into what its annotation says; raises `DecodeError`.
        call: Calls it with body and message, passing on what it wants, where it wants it.
    """

    handler: Callable[..., Any]
    name: str
    is_async: bool
    is_batch: bool
    wants_body: bool
    wants_message: bool
    decode: Callable[[Envelope], object]
    call: Call


def bind(
    handler: Callable[..., Any], *, loads: Callable[[bytes], Any] | None = None
) -> Binding:
    """Read a handler's signature.

    Args:
        handler: Any callable: function, method, partial, object, built-in.
        loads: JSON decoder for its bodies; None: the standard library's.

    Raises:
        HandlerSignatureError: It is no callable or a generator, an annotation cannot be resolved
            or bodies cannot be read into it, or it requires other arguments than it would get.
    """
    if not callable(handler):
        msg = f"a handler must be callable, got {handler!r}"
        raise HandlerSignatureError(msg)
    target = _function_of(handler)
    name = _name(handler)
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        msg = f"{name} is a generator: a handler returns when the message is handled"
        raise HandlerSignatureError(msg)
    slots = _slots(handler, target, name)
    body = slots.get("body")
    try:
        decode = decoder(None if body is None else body.annotation, loads)
    except HandlerSignatureError as error:
        msg = f"{name}: {error}"
        raise HandlerSignatureError(msg) from error
    return Binding(
        handler=handler,
        name=name,
        is_async=_is_async(handler, target),
        is_batch="messages" in slots,
        wants_body=body is not None,
        wants_message="message" in slots,
        decode=decode,
        call=_make_call(
            handler, list(slots), [slot.keyword for slot in slots.values()]
        ),
    )


@dataclass(frozen=True, slots=True)
class _Slot:
    """A parameter that is filled: its resolved annotation; its name if passed by keyword."""

    annotation: object
    keyword: str | None


def _function_of(handler: Callable[..., Any]) -> Any:
    """Find the function that will run, below partials and objects."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    call = type(handler).__call__
    if isinstance(call, types.FunctionType) and not isinstance(handler, type):
        return call
    return handler


def _name(handler: Any) -> str:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not hasattr(handler, "__qualname__"):
        handler = type(handler)
    return f"{handler.__module__ or 'builtins'}.{handler.__qualname__}"


def _slots(handler: Callable[..., Any], target: Any, name: str) -> dict[str, _Slot]:
    """Say which parameters get "body", "message" or "messages", in the order they stand."""
    slots: dict[str, _Slot] = {}
    by_position = True
    for parameter, annotation in _parameters(handler, target, name):
        part = _part(annotation)
        if not _is_filled(parameter, part, slots):
            by_position = False  # what comes after it can only be given by name
            continue
        by_position = by_position and parameter.kind is not parameter.KEYWORD_ONLY
        is_second = bool(slots) and (part in slots or "messages" in {part, *slots})
        if is_second or (
            not by_position and parameter.kind is parameter.POSITIONAL_ONLY
        ):
            msg = f"{name}: nothing to pass as {parameter.name!r}: {_RULE}"
            raise HandlerSignatureError(msg)
        slots[part] = _Slot(annotation, None if by_position else parameter.name)
    if not slots:
        msg = f"{name} takes nothing: {_RULE}"
        raise HandlerSignatureError(msg)
    return slots


def _is_filled(parameter: Parameter, part: str, slots: dict[str, _Slot]) -> bool:
    """Say whether a parameter gets an argument; those with defaults mostly keep them."""
    if parameter.kind is parameter.VAR_KEYWORD:
        return False
    if parameter.kind is parameter.VAR_POSITIONAL:
        return not slots
    if parameter.default is parameter.empty or part != "body":
        return True
    return not slots and parameter.kind is not parameter.KEYWORD_ONLY


def _part(annotation: object) -> str:
    """Name what an annotation asks for."""
    annotation = bare(annotation)
    if annotation is Message or Message in members(
        annotation
    ):  # `Message | None = None`
        return "message"
    arguments = get_args(annotation)
    if get_origin(annotation) in _LISTS and bare(arguments[0]) is Message:
        return "messages"
    return "body"


def _parameters(
    handler: Callable[..., Any], target: Any, name: str
) -> list[tuple[Parameter, object]]:
    """List the parameters with their resolved annotations, None for those without."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (ValueError, TypeError):  # a built-in that does not say what it takes
        return [(inspect.Parameter("body", inspect.Parameter.POSITIONAL_ONLY), None)]
    except NameError as error:  # Python 3.14 evaluates annotations only now
        msg = f"an annotation of {name} cannot be resolved: {error}"
        raise HandlerSignatureError(msg) from error
    owner = _function_of(inspect.unwrap(target))
    module = sys.modules.get(getattr(owner, "__module__", None) or "builtins")
    annotations = resolve(
        {p.name: p.annotation for p in parameters if p.annotation is not p.empty},
        owner,
        getattr(owner, "__globals__", None) or getattr(module, "__dict__", {}),
    )
    return [(p, annotations.get(p.name)) for p in parameters]


def _is_async(handler: Callable[..., Any], target: Any) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(target)


def _make_call(
    handler: Callable[..., Any], parts: list[str], keywords: list[str | None]
) -> Call:
    """Build the call for this order of parameters: nothing is looked up when it is made."""
    match list(zip(parts, keywords, strict=True)):
        case [("body", None), ("message", None)]:
            return handler
        case [("body" | "messages", None)]:
            return lambda body, _: handler(body)
        case [("message", None)]:
            return lambda _, message: handler(message)
        case [("body", None), ("message", str(name))]:
            return lambda body, message: handler(body, **{name: message})
        case [("message", None), ("body", None)]:
            return lambda body, message: handler(message, body)
        case _:
            return _make_any_call(handler, parts, keywords)


def _make_any_call(
    handler: Callable[..., Any], parts: list[str], keywords: list[str | None]
) -> Call:
    first = keywords.count(None)
    at = [int(part == "message") for part in parts]
    names = [name for name in keywords if name is not None]

    def call(body: Any, message: Any) -> Any:
        arguments = [(body, message)[index] for index in at]
        return handler(
            *arguments[:first], **dict(zip(names, arguments[first:], strict=True))
        )

    return call
