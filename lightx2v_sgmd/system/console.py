"""Progress on the terminal: a bar where there is one, timed lines otherwise, nothing when quiet.

Everything goes to stderr, so that results on stdout (``--json``) stay clean. A stream that nobody
reads any more (the launcher has ended, or the pipe is closed) is ignored: the work goes on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from lightx2v_sgmd.system.errors import escaped


class Bar(Protocol):
    """A progress display to which a loop reports how far it is."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts ``count`` more units as done; ``note`` is shown behind the bar."""
        ...

    def correct(self, count: int) -> None:
        """Counts ``count`` more units (fewer, if negative) as done before this loop began.

        They do not change the estimate of the speed.
        """
        ...


@contextmanager
def progress(
    total: int,
    label: str,
    quiet: bool = False,
    *,
    done: int = 0,
    every_s: float = 10.0,
    stream: TextIO | None = None,
) -> Iterator[Bar]:
    """Shows a loop's progress with the time left.

    Args:
        total: Number of units of the whole loop.
        label: Name of the work.
        quiet: Show nothing.
        done: Units that an earlier run did; they do not count for the speed.
        every_s: Seconds between lines where there is no terminal.
        stream: Output stream; stderr by default.
    """
    stream, label = stream if stream is not None else sys.stderr, escaped(label)
    if quiet:
        yield _Silent()
    elif stream.isatty():
        with _rich_bar(total, label, done, stream) as bar:
            yield bar
    else:
        yield Lines(total, label, stream, done=done, every_s=every_s)


def note(message: str, quiet: bool = False) -> None:
    """Prints one line of news on stderr."""
    if not quiet:
        _say(message, sys.stderr)


def _say(line: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        print(escaped(line), file=stream, flush=True)


def duration(seconds: float) -> str:
    """Formats a duration as ``45 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Silent:
    def advance(self, count: int = 1, note: str = "") -> None:
        """Says nothing."""

    def correct(self, count: int) -> None:
        """Says nothing."""


class Lines:
    """Prints progress as lines, at the first and last unit and every ``every_s`` seconds."""

    def __init__(
        self,
        total: int,
        label: str,
        stream: TextIO,
        *,
        done: int = 0,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.stream = total, label, stream
        self.done, self.before = done, done
        self.every_s, self.clock = every_s, clock
        self.start = clock()
        self.last_line_s = -every_s

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts ``count`` more units as done, and prints a line if one is due.

        There is none before the first unit, which gives the first estimate of the speed.
        """
        self.done += count
        elapsed_s = self.clock() - self.start
        finished = self.done >= self.total
        if self.done == self.before and not finished:
            return
        if elapsed_s - self.last_line_s < self.every_s and not finished:
            return
        self.last_line_s = elapsed_s
        if finished:
            pace = f"took {duration(elapsed_s)}"
        else:
            speed = elapsed_s / (self.done - self.before)
            pace = f"{duration(speed * (self.total - self.done))} left"
        parts = [f"{self.label} {self.done}/{self.total}", pace, *([note] if note else [])]
        _say("  ".join(parts), self.stream)

    def correct(self, count: int) -> None:
        """Counts ``count`` more units (fewer, if negative) as done before this loop began."""
        self.done += count
        self.before += count


@contextmanager
def _rich_bar(total: int, label: str, done: int, stream: TextIO) -> Iterator[Bar]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
    )
    # Over a minute, so that a slow first unit or a checkpoint does not throw the estimate.
    with rich_progress.Progress(
        *columns, console=Console(file=stream), speed_estimate_period=60
    ) as shown:
        task = shown.add_task(label, total=total, completed=done, note="")

        class _Rich:
            def advance(self, count: int = 1, note: str = "") -> None:
                shown.update(task, advance=count, note=escaped(note))

            def correct(self, count: int) -> None:
                # Set, not updated: an update is a sample of the speed.
                shown.tasks[0].completed += count

        yield _Rich()
