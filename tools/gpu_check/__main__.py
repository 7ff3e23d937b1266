"""Checks and measures this project on one CUDA GPU, without network, weights or an mp4 encoder.

    python -m tools.gpu_check --out DIR --budget 840          # all of it, 14B shape
    python -m tools.gpu_check --out DIR --steps machine limits attention
    python -m tools.gpu_check --out DIR --shape sprites        # rehearsal, on a CPU too
    python -m tools.gpu_check --page DIR/gpu_check.json        # writes docs/benchmarks/gpu.md

docs/gpu.md says how to run it and how to read what it writes.
"""

from __future__ import annotations

import argparse
import difflib
import math
import sys
import time
from pathlib import Path

from lightx2v_sgmd.system.errors import UserError
from tools.gpu_check.report import MARK
from tools.gpu_check.steps import SIZE_RULES, SIZES, STEPS
from tools.own_files import write_own

BUDGET_S = 840.0
PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "gpu.md"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="steps: " + "; ".join(f"{step.name}: {step.title}" for step in STEPS.values()),
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report and the log")
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET_S,
        metavar="SECONDS",
        help=f"time after which everything stops; default {BUDGET_S:g}",
    )
    parser.add_argument(
        "--steps",
        nargs="+",
        default=list(STEPS),
        metavar="STEP",
        help="steps to run, in this order; default all, listed below",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="ROW",
        help="rows to measure, such as 'engine, fp8'; default all of a step",
    )
    parser.add_argument(
        "--shape", choices=SIZES, default="14b", help="network to measure; default 14b"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        metavar=("HEIGHT", "WIDTH", "FRAMES"),
        help="size of the video; default the shape's own",
    )
    parser.add_argument(
        "--page",
        type=Path,
        nargs="*",
        metavar="JSON",
        help="write the page from reports instead, later ones over earlier ones; without any, the "
        "page that says what is not measured yet",
    )
    parser.add_argument(
        "--page-out",
        type=Path,
        default=PAGE,
        metavar="FILE",
        help=f"where the page is written; default docs/benchmarks/{PAGE.name}",
    )
    return parser.parse_args(words)


def problem(args: argparse.Namespace) -> str | None:
    """The problem with the command line, or None."""
    if args.out is None:
        return "--out: is not given; name a folder for the report"
    for name in args.steps:
        if name not in STEPS:
            return f"--steps: {name!r} is not a step; use {_near(name, [*STEPS])}"
    rows = list(dict.fromkeys(row for name in args.steps for row in STEPS[name].rows))
    for label in args.rows:
        if label not in rows:
            near = _near(label, rows)
            return f"--rows: {label!r} is not a row of {', '.join(args.steps)}; use {near}"
    if not math.isfinite(args.budget) or args.budget <= 0:
        return f"--budget: {args.budget:g} is not a positive number of seconds; use {BUDGET_S:g}"
    if args.size:
        try:
            SIZE_RULES.latent_shape(*args.size)
        except UserError as error:
            return str(error).replace("video.", "--size: ", 1)
    return None


def _near(word: str, known: list[str]) -> str:
    """The known word that is nearest to a word, or all of them, for the end of a line."""
    listed = ", ".join(repr(each) if " " in each else each for each in known)
    return next(iter(difflib.get_close_matches(word, known, 1)), listed)


def main(words: list[str] | None = None) -> int:
    """Runs it: 0 nothing failed, 1 something did, 2 the command line is wrong."""
    start = time.monotonic()
    args = arguments(words)
    if args.page is not None:
        return write_page(args.page, args.page_out)
    wrong = problem(args)
    if wrong is not None:
        return refuse(wrong)
    from tools.gpu_check import summary
    from tools.gpu_check.supervisor import begin, has_gpu, supervise

    gpu = has_gpu()
    if not gpu and args.shape != "sprites":
        return refuse("PyTorch sees no CUDA GPU here; --shape sprites rehearses on a CPU")
    try:
        size = tuple(args.size) if args.size else None
        report = begin(args.out, args.budget, args.shape, size, args.steps, start, args.rows)
    except OSError as error:
        return refuse(f"--out: {args.out} cannot be written: {error.strerror}; name another folder")
    report.data["device"] = "cuda" if gpu else "cpu"
    report = supervise(report)
    print(summary.table(report), flush=True)
    return 1 if summary.failures(report) else 0


def write_page(reports: list[Path], out: Path) -> int:
    """Writes the page from reports."""
    from tools.gpu_check.page import PageError, page_of

    try:
        text = page_of(reports)
    except PageError as error:
        return refuse(str(error))
    write_own(out, text, MARK)
    print(out)
    return 0


def refuse(line: str) -> int:
    """Says what is wrong in one line."""
    print(f"error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
