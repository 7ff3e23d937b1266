"""Being told to stop: by Ctrl-C, by a scheduler, by a launcher."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from lightx2v_sgmd.system.console import note

STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to save and leave; schedulers announce the end of a job by the last."""

_PATIENCE_S: Final = 10.0
"""How long what is interrupted may take to come to an end."""


@contextmanager
def handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[bool]:
    """Inside, signals go to these handlers; gives whether they do.

    They cannot outside of the main thread: whoever runs us there handles signals.
    """
    before = {}
    try:
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
    except ValueError:
        yield False
        return
    try:
        yield True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, every one of ``STOPPING`` raises KeyboardInterrupt: there is nothing to save yet.

    Python does that between two of its own instructions. A call that waits for other machines has
    none for minutes: if the block has not come to an end by then, the process does (exit code 130).
    """
    with handling(dict.fromkeys(STOPPING, signal.default_int_handler)) as able:
        if not able:
            yield
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        over = threading.Event()
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        thread = threading.Thread(target=_see_to_it, args=(reading, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            signal.set_wakeup_fd(before)
            os.close(writing)  # ends the thread


def _see_to_it(reading: int, over: threading.Event) -> None:
    """Reads the numbers of signals as they come, and ends the process if one has no effect."""
    with open(reading, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            asked = number[0] in STOPPING
            # Another handler is there once there is something to save.
            if asked and signal.getsignal(number[0]) is signal.default_int_handler:
                if not over.wait(_PATIENCE_S):
                    os._exit(130)


@contextmanager
def stop_on_signal(quiet: bool) -> Iterator[Callable[[], bool]]:
    """Inside, the first signal asks to stop, and a Ctrl-C after it stops at once.

    Another SIGTERM changes nothing: schedulers and launchers send several, and SIGKILL when their
    patience is over. Gives a function that says whether to stop.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not asked:
            note("stopping, with a checkpoint; Ctrl-C again stops at once", quiet)
        asked = True

    with handling(dict.fromkeys(STOPPING, ask)):
        yield lambda: asked
