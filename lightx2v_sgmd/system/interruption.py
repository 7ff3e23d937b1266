"""The end of a process after Ctrl-C."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Final, NoReturn

INTERRUPTED: Final = 130
"""The exit code."""


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
