"""A shell that outlives this process, to end what it started."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Reads process numbers from us. When our end of the pipe closes without a farewell, we are gone,
# by whatever signal: it then ends the process group (a stopped one too) and removes the folder.
_SCRIPT = """
server=
while read -r line; do
    [ "$line" = dismissed ] && exit 0
    server=$line
done
if [ -n "$server" ]; then
    kill -s CONT -- "-$server"
    kill -s TERM -- "-$server"
    tries=50
    while [ $tries -gt 0 ] && kill -s 0 -- "-$server"; do
        sleep 0.1
        tries=$((tries - 1))
    done
    kill -s KILL -- "-$server"
fi
[ -z "$1" ] || rm -rf -- "$1"
"""


class Reaper:
    """Ends a server, and removes its directory, when this process is gone.

    A pipe closes when a process ends, even by SIGKILL, on every POSIX system. Linux's parent death
    signal would do less: it is sent when the *thread* that started the server ends, it needs
    code between fork and exec, and it leaves the directory behind.

    A child that was forked without exec keeps the pipe open: the server then lives as long as
    the last of them.
    """

    def __init__(self, directory: Path | None) -> None:
        """Start the shell.

        Args:
            directory: What to remove, None for nothing.
        """
        self._shell = subprocess.Popen(  # noqa: S603 -- a fixed script
            ["/bin/sh", "-c", _SCRIPT, "sh", str(directory or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is not for it
        )
        assert self._shell.stdin is not None
        self._pipe = self._shell.stdin

    def watch(self, process_group: int) -> None:
        """Name the process group to end; the last one named counts."""
        self._tell(str(process_group))

    def forget(self) -> None:
        """Say that the process has ended: its number may soon be somebody else's."""
        self._tell("")

    def dismiss(self) -> None:
        """Let the shell go; it ends and removes nothing any more."""
        self._tell("dismissed")
        with suppress(BrokenPipeError):
            self._pipe.close()
        self._shell.wait()

    def _tell(self, line: str) -> None:
        """Write one line; a shell that is gone has nothing left to do."""
        with suppress(BrokenPipeError):
            self._pipe.write(f"{line}\n".encode())
            self._pipe.flush()
