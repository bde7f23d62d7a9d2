"""The Lua scripts: one operation a file in `lua/`, its contract on top.

A line `-- with: NAME` puts the file `NAME.lua`, a fragment several scripts share, in front. No
script has a `#!lua` line: under a full memory Redis refuses those whatever they do, while a plain
one may go on if its first write frees memory (XACK).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from ._errors import PermissionDeniedError, ServerError, server_error
from ._wire import pack

if TYPE_CHECKING:
    from collections.abc import Sequence

_by_digest: dict[str, Script] = {}
_PLACE = re.compile(
    r"(?:f_|script: )(?P<digest>[0-9a-f]{40}).*?@user_script:(?P<line>\d+)"
)
_CALL = re.compile(r"redis\.p?call\(\s*'(\w+)'(?:, '(\w+)')?")


@dataclass(frozen=True, slots=True)
class Script:
    """A script, called by its digest and sent whole when the server does not know it."""

    name: str
    text: bytes
    digest: bytes

    def by_digest(
        self, keys: Sequence[str], arguments: Sequence[bytes | str | int]
    ) -> bytes:
        """Pack EVALSHA; a server that does not know the script answers NOSCRIPT."""
        return pack(b"EVALSHA", self.digest, len(keys), *keys, *arguments)

    def whole(
        self, keys: Sequence[str], arguments: Sequence[bytes | str | int]
    ) -> bytes:
        """Pack EVAL, which also teaches the server the script."""
        return pack(b"EVAL", self.text, len(keys), *keys, *arguments)


def _load(name: str) -> Script:
    folder = files("aioredismq") / "lua"
    text = (folder / f"{name}.lua").read_text("utf-8")
    shared = re.findall(r"^-- with: (\w+)$", text, flags=re.MULTILINE)
    parts = [(folder / f"{fragment}.lua").read_text("utf-8") for fragment in shared]
    whole = "\n".join([*parts, text]).encode()
    digest = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
    script = _by_digest[digest] = Script(name, whole, digest.encode())
    return script


def reply_error(text: str) -> ServerError:
    """Make the error for an error reply, and name the command a script was denied.

    Redis 6.2 and 7.0 say only that there is one.
    """
    error = server_error(text)
    if not isinstance(error, PermissionDeniedError) or "can't run this" not in text:
        return error
    named = PermissionDeniedError(f"{error} ({_denied(text)})")
    named.code = error.code
    return named


def _denied(text: str) -> str:
    """Look up what stands at the place in the script that an error names."""
    place = _PLACE.search(text)
    script = None if place is None else _by_digest.get(place["digest"])
    if place is not None and script is not None:
        following = script.text.decode().split("\n")[int(place["line"]) - 1 :]
        call = _CALL.search("\n".join(following))
        if call is not None:
            words = " ".join(word for word in call.groups() if word)
            return f"{words.lower()!r}, which {script.name} needs"
    return "`ACL LOG` on the server says which"


APPEND = _load("append")
DELETE = _load("delete")
DESTROY_GROUP = _load("destroy_group")
FORGET_CONSUMER = _load("forget_consumer")
GENERATIONS = _load("generations")
MOVE = _load("move")
OPEN_GROUP = _load("open_group")
OWN_PENDING = _load("own_pending")
RECOVER = _load("recover")
REDRIVE = _load("redrive")
RENEW = _load("renew")
RETIRE = _load("retire")
SETTLE = _load("settle")
SWEEP = _load("sweep")
TAKE = _load("take")
