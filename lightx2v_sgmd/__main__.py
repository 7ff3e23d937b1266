"""The ``lightx2v-sgmd`` command, which is also ``python -m lightx2v_sgmd``."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def main() -> None:
    """Runs the command line and exits with its code; Ctrl-C ends it in one line at any moment."""
    try:
        from lightx2v_sgmd.cli.main import main as run
    except KeyboardInterrupt:
        leave_interrupted()
    run()


def leave_interrupted() -> NoReturn:
    """Ends the process after Ctrl-C with its line and exit code 130.

    ``sys.exit`` would not do: Python remembers an interrupt that passed through ``exec`` of a text,
    as during imports, and ends by the signal instead.
    """
    print("interrupted; run the same command again", file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
