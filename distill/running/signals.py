"""Handles requests to stop: Ctrl-C and the signals of schedulers and launchers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.processes import handling

STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a run to save and end; schedulers announce a job's end by the last one."""

_PATIENCE_S: Final = 10.0
"""Time that interrupted code has to end."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, every one of ``STOPPING`` raises KeyboardInterrupt; nothing is saved.

    Python does that between two of its own instructions. A call that waits for other machines has
    none for minutes: if the block does not end soon, the process does (exit code 130).
    """
    with handling(dict.fromkeys(STOPPING, signal.default_int_handler)) as able:
        if not able:
            yield
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        over = threading.Event()
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        thread = threading.Thread(target=_end_if_ignored, args=(reading, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            signal.set_wakeup_fd(before)
            os.close(writing)  # ends the thread


def _end_if_ignored(reading: int, over: threading.Event) -> None:
    """Reads signal numbers as they come, and ends the process if one has no effect."""
    with open(reading, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            asked = number[0] in STOPPING
            # Another handler is set once there is something to save.
            if asked and signal.getsignal(number[0]) is signal.default_int_handler:
                if not over.wait(_PATIENCE_S):
                    os._exit(130)


@contextmanager
def stop_on_signal(quiet: bool) -> Iterator[Callable[[], bool]]:
    """Inside, the first signal asks to stop, and a Ctrl-C after it stops at once.

    Another SIGTERM changes nothing: schedulers and launchers send several, and SIGKILL at the end.
    Gives a function that returns True if the run is asked to stop.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not asked:
            note("stopping after saving a checkpoint; press Ctrl-C again to stop at once", quiet)
        asked = True

    with handling(dict.fromkeys(STOPPING, ask)):
        yield lambda: asked
