"""What the demo shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ._demo_latency import can_measure
from ._terminal import write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.live import Live
    from rich.table import Table

    from ._demo_tally import Figures

# Often enough to look alive, seldom enough not to slow the demo down on two cores.
_LIVE_EVERY = 0.2
_PLAIN_EVERY = 1.0

_EXTRA = "pip install 'aioredismq[demo]'"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far the run is.

    Attributes:
        elapsed: Seconds since the first order.
        expected: Messages there will be; None while the input is still being read.
        figures: What was counted so far.
        rate: Messages handled per second, lately.
        latency: Seconds by percentile; None when nothing was measured.
        workers: Name, state and count of each process.
    """

    elapsed: float
    expected: int | None
    figures: Figures
    rate: float
    latency: Mapping[str, float] | None
    workers: Sequence[tuple[str, str, int]] = field(default=())

    def cells(self) -> dict[str, str]:
        """Give each figure in words, by its name."""
        of = "" if self.expected is None else f" of {self.expected}"
        cells = {
            "sent": f"{self.figures.produced}{of}",
            "handled": f"{self.figures.handled}",
            "in flight": f"{self.figures.waiting}",
            "rate": f"{self.rate:.0f}/s",
        }
        if self.latency is not None:
            cells["latency"] = words_of_latency(self.latency)
        for name, count in (
            ("dead letters", self.figures.dead),
            ("duplicates", self.figures.duplicates),
        ):
            if count:
                cells[name] = str(count)
        return cells


class Display(Protocol):
    """Where the run is shown. Used as a context manager; left before the summary."""

    every: float
    """Seconds from one `show` to the next."""

    def show(self, snapshot: Snapshot) -> None:
        """Show how far the run is.

        Raises:
            OSError: Nobody reads it any more.
        """

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainDisplay:
    """One line now and then, for files, pipes and simple terminals."""

    every = _PLAIN_EVERY

    def show(self, snapshot: Snapshot) -> None:
        """Write one line."""
        cells = snapshot.cells()
        words = "  ".join(f"{name} {value}" for name, value in cells.items())
        write(f"{snapshot.elapsed:6.1f} s  {words}")

    def close(self) -> None:
        """Nothing to be done."""


class LiveDisplay:
    """A table that stays in its place."""

    every = _LIVE_EVERY

    def __init__(self, live: Live) -> None:
        """Take over the live area; `live_display` makes it."""
        self._live = live
        live.start()

    def show(self, snapshot: Snapshot) -> None:
        """Draw it anew."""
        self._live.update(_table(snapshot), refresh=True)

    def close(self) -> None:
        """Leave the last state on the screen, and the cursor below."""
        self._live.stop()


def choose_display() -> Display:
    """Take the live table on a terminal that can, when `rich` is installed; else plain lines."""
    if sys.stdout is None or not sys.stdout.isatty():
        return PlainDisplay()
    try:
        from rich.console import Console  # an extra
        from rich.live import Live
    except ImportError:
        write(f"(for a live display: {_EXTRA})")
        return PlainDisplay()
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        return PlainDisplay()
    # Standard error may be a file: only what would disturb the table is drawn above it.
    redirect = sys.stderr is not None and sys.stderr.isatty()
    return LiveDisplay(
        Live(console=console, auto_refresh=False, redirect_stderr=redirect)
    )


def words_of_latency(latency: Mapping[str, float] | None) -> str:
    """Say percentiles in words."""
    if latency is None:
        return "not measured" if can_measure() else f"not measured ({_EXTRA})"
    return "  ".join(f"{name} {_duration(value)}" for name, value in latency.items())


def _duration(seconds: float) -> str:
    """Say a duration with the unit that fits it."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s"


def _table(snapshot: Snapshot) -> Table:
    """Draw the figures on the left, the processes on the right."""
    from rich.table import Table  # an extra
    from rich.text import Text  # takes words as they are, no mark-up

    figures = Table.grid(padding=(0, 2))
    for name, value in snapshot.cells().items():
        figures.add_row(Text(name, style="bold"), Text(value.replace("  ", "\n")))
    workers = Table.grid(padding=(0, 2))
    for name, state, count in snapshot.workers:
        workers.add_row(name, str(count), Text(state, style="dim"))
    both = Table(
        title=f"aioredismq demo, {snapshot.elapsed:.1f} s", title_justify="left"
    )
    both.add_column("messages", width=30)
    both.add_column("processes")
    both.add_row(figures, workers)
    return both
