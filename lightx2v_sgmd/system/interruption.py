"""The end of a process after Ctrl-C."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

INTERRUPTED: Final = 130
"""The exit code."""
_noticed: list[int] = []


def notice_interrupts() -> None:
    """Lets this process remember that Ctrl-C was pressed.

    Some libraries catch every exception while they are imported, and fail with another one later.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _noticed.append(number)
    signal.default_int_handler(number, frame)


def was_interrupted() -> bool:
    """Returns True if Ctrl-C was pressed since ``notice_interrupts``."""
    return bool(_noticed)


def leave_interrupted() -> NoReturn:
    """Ends the process with one line on stderr and exit code 130.

    ``sys.exit`` would not do: Python remembers an interrupt that passed through ``exec`` of a text,
    as during imports, and ends by the signal instead.
    """
    print("interrupted; run the same command again", file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)
