"""Models of pydantic and msgspec: read by their own libraries, which are never imported first.

A model is known by what its class carries. Only when an annotation mentions one is its library
imported, and then it has been already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, get_args

from ._errors import HandlerSignatureError
from ._hints import bare, describe
from ._json import MismatchError, step

Parse: TypeAlias = Callable[[bytes], object]
"""From JSON text to the value, or a `MismatchError`."""


def make_parse(annotation: object) -> Parse | None:
    """Make the parser for an annotation that is, or contains (`list[Order]`), a model.

    Returns:
        None when it mentions no model.

    Raises:
        HandlerSignatureError: The library does not take the annotation.
    """
    if _mentions(annotation, "__pydantic_validator__"):
        make = _pydantic
    elif _mentions(annotation, "__struct_fields__"):
        make = _msgspec
    else:
        return None
    try:
        return make(annotation)
    except Exception as error:
        msg = f"cannot decode a body into {describe(annotation)}: {error}"
        raise HandlerSignatureError(msg) from error


def _mentions(
    annotation: object, mark: str, seen: frozenset[int] = frozenset()
) -> bool:
    """Tell whether a marked class stands in an annotation, which may contain itself."""
    annotation = bare(annotation)
    if isinstance(annotation, type) and hasattr(annotation, mark):
        return True
    return id(annotation) not in seen and any(
        _mentions(argument, mark, seen | {id(annotation)})
        for argument in get_args(annotation)
    )


def _pydantic(annotation: Any) -> Parse:
    import pydantic

    validate = pydantic.TypeAdapter[object](annotation).validate_json

    def parse(raw: bytes) -> object:
        try:
            return validate(raw)
        except pydantic.ValidationError as error:
            first, *others = error.errors(include_url=False)
            at = "".join(map(step, first["loc"]))
            what = f"{first['msg']}, got {type(first['input']).__name__}"
            if first["type"] == "json_invalid":
                what = first["msg"]
            if others:
                what += f" (and {len(others)} more)"
            raise MismatchError(what, at) from error
        except Exception as error:
            raise MismatchError.refused(describe(annotation), error) from error

    return parse


def _msgspec(annotation: object) -> Parse:
    import msgspec

    decode = msgspec.json.Decoder(annotation).decode

    def parse(raw: bytes) -> object:
        try:
            return decode(raw)
        except msgspec.DecodeError as error:
            # Where there is a path, the text ends with " - at `$.items[0].price`".
            what, _, at = str(error).partition(" - at `$")
            raise MismatchError(what, at.rstrip("`")) from error
        except Exception as error:
            raise MismatchError.refused(describe(annotation), error) from error

    return parse
