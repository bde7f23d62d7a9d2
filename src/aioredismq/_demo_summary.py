"""How a run of the demo came out: in words, as JSON, and as an exit code."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ._demo_display import words_of_latency

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._demo_server import Leftovers
    from ._demo_tally import Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything that was counted.

    Attributes:
        queue: Its name.
        server: Where it ran, in words.
        ordered: Messages the producers were told to send.
        bad_lines: Lines of the input that were no message.
        figures: From what the processes recorded.
        leftovers: What the server still had; None when it did not answer.
        seconds: From the first order to the last record.
        latency: From `produce` to the end of the handler, by percentile; None when not measured.
        workers: Name, state and count of each process.
        failed_workers: How many did not end as they should.
        trouble: Why the run was given up; empty when it was not.
        signal_number: What interrupted it, None when nothing did.
    """

    queue: str
    server: str
    ordered: int
    bad_lines: int
    figures: Figures
    leftovers: Leftovers | None
    seconds: float
    latency: Mapping[str, float] | None
    workers: Sequence[tuple[str, str, int]]
    failed_workers: int
    trouble: str
    signal_number: int | None

    @property
    def is_good(self) -> bool:
        """Whether every message ordered was counted as handled or put aside."""
        figures = self.figures
        return (
            figures.produced == self.ordered
            and not figures.waiting
            and not self.failed_workers
            and self.leftovers is not None
            and not self.leftovers.pending
            and (self.ordered > 0 or not self.bad_lines)
        )

    @property
    def exit_code(self) -> int:
        """0 all counted, nothing lost; 1 something is missing; 128 + n stopped by a signal."""
        if self.signal_number is not None:
            return 128 + self.signal_number
        return 0 if self.is_good else 1

    @property
    def rate(self) -> float:
        """Messages handled per second, over the whole run."""
        return self.figures.handled / self.seconds if self.seconds else 0.0

    def text(self) -> str:
        """Say it in some lines."""
        figures = self.figures
        rows = [
            ("produced", figures.produced, self._of_producing()),
            ("handled", figures.handled, self._of_handling()),
            ("duplicates", figures.duplicates, "handled or put aside once more"),
            ("lost", figures.lost, "confirmed, and found nowhere"),
            ("dead letters", figures.dead, self._of_dead()),
        ]
        if figures.stored:
            rows.append(("still queued", figures.stored, "there, and not handled"))
        if figures.unconfirmed:
            why = "handled; the producer did not live to hear that they were sent"
            rows.append(("unconfirmed", figures.unconfirmed, why))
        if self.bad_lines:
            rows.append(("bad lines", self.bad_lines, "named above, not sent"))
        lines = [
            f"  {name:<13}{count:>9}  {note if count else ''}".rstrip()
            for name, count, note in rows
        ]
        return "\n".join(
            [
                f"Counted on {self.server}, queue {self.queue}:",
                *lines,
                f"  {'on the server':<13}{self._of_server()}",
                f"  {'rate':<13}{self.rate:>9.0f}  handled per second, {self.seconds:.1f} s",
                f"  {'latency':<13}{words_of_latency(self.latency)}",
                self._verdict(),
            ]
        )

    def report(self) -> str:
        """Give it as JSON."""
        leftovers = self.leftovers
        return json.dumps(
            {
                "queue": self.queue,
                "server": self.server,
                "ordered": self.ordered,
                "bad_lines": self.bad_lines,
                **asdict(self.figures),
                "on_server": leftovers
                and {
                    "length": leftovers.length,
                    "returned": leftovers.returned,
                    "pending": leftovers.pending,
                    "dead": leftovers.dead,
                },
                "seconds": round(self.seconds, 3),
                "rate": round(self.rate, 1),
                "latency": self.latency,
                "workers": [
                    {"name": name, "state": state, "count": count}
                    for name, state, count in self.workers
                ],
                "exit_code": self.exit_code,
            },
            indent=2,
        )

    def _of_producing(self) -> str:
        missing = self.ordered - self.figures.produced
        shares = self._shares("producer")
        return f"{shares}; {missing} were not sent" if missing else shares

    def _of_handling(self) -> str:
        shares = self._shares("consumer")
        return f"{shares}, dead letters included" if self.figures.dead else shares

    def _shares(self, role: str) -> str:
        counts = [
            str(count) for name, _, count in self.workers if name.startswith(role)
        ]
        processes = "process" if len(counts) == 1 else "processes"
        return f"by {len(counts)} {processes}: {' + '.join(counts)}"

    def _of_dead(self) -> str:
        if self.leftovers is None or self.leftovers.dead == self.figures.dead:
            return "put aside with their reason" if self.figures.dead else ""
        return f"recorded; the server has {self.leftovers.dead}"

    def _of_server(self) -> str:
        left = self.leftovers
        if left is None:
            return "      ?  it did not answer"
        return (
            f"{left.length:>9}  in the stream, {left.returned} handed back, "
            f"{left.pending} pending, {left.dead} dead letters"
        )

    def _verdict(self) -> str:
        figures = self.figures
        if self.signal_number is not None:
            name = signal.Signals(self.signal_number).name
            return f"Stopped by {name}: {self._missing() or 'nothing is missing'}."
        if self.is_good:
            dead = f", {figures.dead} of them as dead letters" if figures.dead else ""
            return f"All {self.ordered} messages are accounted for{dead}; none is lost."
        failed = (
            f"{self.failed_workers} process(es) failed" if self.failed_workers else ""
        )
        missing = self._missing()
        if not missing and failed:
            return f"All {self.ordered} messages are accounted for, although {failed}."
        why = "; ".join(filter(None, (self.trouble, failed, missing)))
        return f"Not good: {why or 'see above'}."

    def _missing(self) -> str:
        figures = self.figures
        parts = (
            (self.ordered - figures.produced, "not sent"),
            (figures.lost, "lost"),
            (figures.stored, "still in the queue"),
        )
        return ", ".join(f"{count} {what}" for count, what in parts if count)
