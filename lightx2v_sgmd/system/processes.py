"""Starts processes of our own that end with this one, and handles signals for them.

A started process gets a pipe as its standard input. The pipe closes when the starting process is
gone, however that ended, and ``follow_parent`` in the started process then asks it to stop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from lightx2v_sgmd.system.errors import short_line

_SHOWN_BYTES: Final = 4000


def process_environment(processes: int) -> dict[str, str]:
    """The environment of one of several processes that work side by side on this machine.

    It has the packages of this process on its path, and an equal share of the cores as threads
    unless ``OMP_NUM_THREADS`` is set.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    home = str(Path(__file__).resolve().parents[2])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "OMP_NUM_THREADS": str(max(1, (cores or 1) // processes)),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
    }


def start_module(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts ``python -m module`` in a session of its own, so that Ctrl-C reaches only this one.

    Args:
        module: The module; its main part calls ``follow_parent`` and ``leave``.
        arguments: The module's arguments.
        environment: The environment, from ``process_environment``.
        output: The file for its standard output and error; None for those of this process.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def program_of(python: Path | None) -> str:
    """The Python to start: one that was named, else this one.

    A path without a folder would be looked up in PATH, so it becomes absolute.
    """
    if python is None:
        return sys.executable
    return str(python.absolute() if python.is_file() else python)


def last_line(log: IO[bytes], most: int = 120) -> str:
    """The last line that a program wrote into an open file, cut to ``most`` characters."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - _SHOWN_BYTES))
    lines = log.read().decode(errors="replace").strip().splitlines()
    return short_line(lines[-1], most) if lines else "it printed nothing"


def release(process: subprocess.Popen[bytes]) -> None:
    """Closes the pipe to a process that has ended."""
    assert process.stdin is not None, "start_module opens it as a pipe"
    process.stdin.close()


def follow_parent() -> None:
    """Sends this process a SIGTERM when the process that started it has ended."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def leave(code: int) -> NoReturn:
    """Ends this process without the interpreter's shutdown.

    The thread of ``follow_parent`` is in a read that never returns, and the shutdown waits for it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[bool]:
    """Inside, signals go to these handlers; gives True if they do.

    Outside the main thread they cannot: there, the calling program handles signals.
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
