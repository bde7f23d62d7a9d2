"""Annotations: resolved, looked through, and written for people."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from typing import TYPE_CHECKING, Any

import typing_extensions as typing_x

from ._errors import HandlerSignatureError

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNIONS = (typing.Union, types.UnionType)
_BASES = (object, typing.Generic, typing.Protocol, typing_x.Protocol)
_WRAPPERS = (
    typing.Annotated,
    typing.ClassVar,
    typing.Final,
    typing_x.Required,
    typing_x.NotRequired,
    typing_x.ReadOnly,
)


def resolve(
    annotations: Mapping[str, object], owner: Any, names: Mapping[str, object]
) -> dict[str, object]:
    """Evaluate annotations that are strings, or contain some.

    Args:
        annotations: By name.
        owner: The class or function they stand at. When it was made inside a function that is
            still running, the local names of that function count too.
        names: The global names there.

    Raises:
        HandlerSignatureError: One cannot be evaluated; the text has it, the owner and the reason.
    """
    around = dict(_locals_around(owner))
    around |= {
        variable.__name__: variable
        for variable in getattr(owner, "__type_params__", ())
    }
    if isinstance(owner, type):  # recursive, perhaps, and of a function that has ended
        around[owner.__name__] = owner
    resolved: dict[str, object] = {}
    for name, annotation in annotations.items():
        # A class, as only there `ClassVar` and `Final` are taken.
        holder = type("holder", (), {"__annotations__": {name: annotation}})
        try:
            hints = typing_x.get_type_hints(
                holder, dict(names), around, include_extras=True
            )
        except Exception as error:
            msg = (
                f"annotation {describe(annotation)} of {name!r} in {describe(owner)} cannot be "
                f"resolved: {error} (it is needed when the program runs: define or import it "
                "above, not under `if TYPE_CHECKING`)"
            )
            raise HandlerSignatureError(msg) from error
        resolved |= hints
    return resolved


def fields_of(annotation: Any) -> dict[str, Any]:
    """Resolve the annotated names of a class, its bases' first, each where it was written.

    Type variables are replaced by what the class, or a base in the list of bases, was
    subscripted with.

    Raises:
        HandlerSignatureError: An annotation cannot be resolved.
    """
    kind = typing_x.get_origin(annotation) or annotation
    if not isinstance(kind, type) or kind in _BASES:
        return {}
    filled = dict(
        zip(
            getattr(kind, "__parameters__", ()),
            typing_x.get_args(annotation),
            strict=False,
        )
    )
    hints: dict[str, Any] = {}
    for base in reversed(typing_x.get_original_bases(kind)):
        hints |= fields_of(_fill(base, filled))
    names = getattr(sys.modules.get(kind.__module__), "__dict__", {})
    for name, hint in resolve(_annotations_of(kind), kind, names).items():
        hints[name] = _fill(hint, filled)
    return hints


def _annotations_of(kind: type) -> dict[str, Any]:
    try:
        return inspect.get_annotations(kind)
    except NameError as error:  # from Python 3.14 on, they are evaluated only now
        msg = f"an annotation in {describe(kind)} cannot be resolved: {error}"
        raise HandlerSignatureError(msg) from error


def _aliased(annotation: Any) -> Any:
    alias = typing_x.get_origin(annotation) or annotation
    arguments = typing_x.get_args(annotation)
    return _fill(
        alias.__value__, dict(zip(alias.__type_params__, arguments, strict=False))
    )


def _fill(hint: Any, filled: Mapping[object, object]) -> Any:
    """Put what a class was subscripted with in the place of its type variables."""
    if isinstance(hint, dataclasses.InitVar):
        hint = hint.type
    if isinstance(hint, typing.TypeVar):
        return filled.get(hint, hint)
    variables = getattr(hint, "__parameters__", ())
    if isinstance(hint, type) or not variables or typing_x.get_origin(hint) in _BASES:
        return hint
    return hint[tuple(filled.get(variable, variable) for variable in variables)]


def bare(annotation: object) -> object:
    """Look through `Annotated`, `NewType`, `Final`, `Required` and type aliases."""
    while True:
        if typing_x.get_origin(annotation) in _WRAPPERS:
            annotation = typing_x.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif is_alias(annotation):
            annotation = _aliased(annotation)
        else:
            return annotation


def members(annotation: object) -> tuple[object, ...]:
    """Name the members of a union, those of unions inside it too; empty for anything else."""
    if typing_x.get_origin(annotation) not in _UNIONS:
        return ()
    found: list[object] = []
    for member in map(bare, typing_x.get_args(annotation)):
        found.extend(members(member) or (member,))
    return tuple(found)


def is_required(hint: object, *, otherwise: bool) -> bool:
    """Tell whether a key of a `TypedDict` must be there.

    Under `from __future__ import annotations` the class does not know what its hints say.
    """
    while (origin := typing_x.get_origin(hint)) in _WRAPPERS:
        if origin in {typing_x.Required, typing_x.NotRequired}:
            return origin is typing_x.Required
        hint = typing_x.get_args(hint)[0]
    return otherwise


def is_alias(annotation: object) -> bool:
    """Tell whether it was made by `type X = …`, or by the class behind it, or is one's `X[int]`."""
    # By name: the class of `typing_extensions` is another than that of `typing`.
    origin = typing_x.get_origin(annotation) or annotation
    return type(origin).__name__ == "TypeAliasType"


def describe(annotation: object) -> str:
    """Write an annotation, class or function as a reader would: `list[Order]`, `int | None`."""
    if annotation is None or annotation is type(None):
        return "None"
    if typing_x.get_origin(annotation) in _UNIONS:
        return " | ".join(map(describe, typing_x.get_args(annotation)))
    if typing_x.get_args(annotation):
        return str(annotation).replace("typing.", "")
    name = getattr(annotation, "__qualname__", None)
    return repr(annotation) if name is None else name.rpartition("<locals>.")[2]


def _locals_around(owner: Any) -> Mapping[str, object]:
    """Find the local names of the function `owner` was made in, while that is running."""
    scope, inside, _ = getattr(owner, "__qualname__", "").rpartition(".<locals>.")
    frame = inspect.currentframe() if inside else None
    while frame is not None:
        if (
            frame.f_code.co_qualname == scope
            and frame.f_globals.get("__name__") == owner.__module__
        ):
            return frame.f_locals
        frame = frame.f_back
    return {}
