"""Being told to stop: by Ctrl-C, by a scheduler, by a launcher."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from lightx2v_sgmd.console import note

STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to save and leave; schedulers announce the end of a job by the last."""


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
    """Inside, every one of ``STOPPING`` raises KeyboardInterrupt: there is nothing to save yet."""
    with handling(dict.fromkeys(STOPPING, signal.default_int_handler)):
        yield


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
