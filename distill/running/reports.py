"""What a rank says at its end, to the process that started it or to the user."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lightx2v_sgmd.untrusted.json_text import read_record

VARIABLE = "LIGHTX2V_SGMD_REPORT"
"""Tells a rank that ``launch`` has started where to leave its report."""


@dataclass(frozen=True)
class Report:
    """Why a rank has failed, in a line, and its exit code."""

    error: str
    code: int


def write_report(report: Report) -> None:
    """Leaves it for the process that started this one."""
    text = json.dumps({"error": report.error, "code": report.code})
    Path(os.environ[VARIABLE]).write_text(text, encoding="utf-8")


def read_report(path: Path) -> Report | None:
    """A rank's, if it has left one."""
    return Report(**read_record(path)) if path.is_file() else None


def give_up(run: Path, rank: int, message: str, speak: bool) -> None:
    """Ends this process, from a thread: the main one is in a call that nothing ends.

    Where each thread was goes to ``RUN/failed/stacks_rank_00000.txt``.
    """
    try:
        (run / "failed").mkdir(exist_ok=True)
        with (run / "failed" / f"stacks_rank_{rank:05d}.txt").open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file)
    except OSError:
        pass  # the message matters more
    if VARIABLE in os.environ:
        write_report(Report(message, 1))
    elif speak:
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)
