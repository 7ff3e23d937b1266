"""Runs the update again that a training run stopped at because a number was not finite.

    python -m tools.replay_failure runs/wan_14b/failed/step_000012

Prints the same line as the run did, and exits with 1; or says that everything is finite now, and
exits with 0. That is how a change of the code, the precision or the data is tried on it. The state
is loaded into one process; one that is too large for it runs under torchrun, as the run itself did.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from distill.running.failures import replay
from lightx2v_sgmd.system.errors import UserError


def main(arguments: list[str]) -> int:
    """Replays a state; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run the update again that broke a training run.")
    parser.add_argument("folder", type=Path, help="RUN/failed/step_N")
    folder = parser.parse_args(arguments).folder
    try:
        error = replay(folder, launched="RANK" in os.environ)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(f"{folder}: everything is finite now" if error is None else str(error))
    return 0 if error is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
