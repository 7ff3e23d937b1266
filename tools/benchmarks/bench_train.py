"""Times training iterations of a job by phase; with several methods, beside each other.

    python -m tools.benchmarks.bench_train configs/sprites_sgmd.yaml --methods sgmd,dmd2
    python -m tools.benchmarks.bench_train --shape 1.3b --strategy local --out bench.json
    python -m tools.benchmarks.bench_train JOB.yaml --nproc 2 --set parallel.strategy=zero3
    torchrun --nproc-per-node 8 -m tools.benchmarks.bench_train configs/wan2.1_t2v_1.3b_sgmd.yaml

A shape is the shipped SGMD job of that size with random weights, made in memory: nothing is read
or downloaded. A job file needs its model's weights.

Methods take turns, iteration by iteration, so that a machine that others use slows all alike. A
single process on a GPU measures them one after the other instead, so that each one's peak of memory
is its own. Each step of the rollout is the exit step equally often. A method's own sections come
from the job beside the named one, as in ``lightx2v-sgmd compare``.

Operations are those that ``plan`` counts, recomputed ones included (``mfu``) or not
(``mfu_useful``). Communication is, on CPUs, time in which a process waits for another; on GPUs,
what NCCL's kernels take while no other kernel runs, from a profile of one more iteration. Memory is
compared with the plan's, without its reserve and without sample videos, which are not made here.

The JSON is written anew after every iteration. ``--budget`` ends the measurements early, and the
JSON then says what is missing (``complete``, ``iterations``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightx2v_sgmd.apps.comparison.planning import method_job
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.teacher import open_teacher
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import Ranks, connect, training_device
from lightx2v_sgmd.system.resources import config_path
from tools.benchmarks import machines
from tools.benchmarks.phases import PHASES
from tools.benchmarks.training_rows import TrainingBench, gpu_peak_tflops
from tools.models.random_wan import open_random_wan
from tools.own_files import write_own

_STARTED = time.monotonic()
SHAPES = {
    "sprites": "sprites_sgmd.yaml",
    "1.3b": "wan2.1_t2v_1.3b_sgmd.yaml",
    "14b": "wan2.1_t2v_14b_sgmd.yaml",
}
"""The shipped job of each shape."""


class Clock:
    """The time that is left, the same for all processes.

    Args:
        budget_s: Seconds since this program started; None is no limit.
    """

    def __init__(self, budget_s: float | None) -> None:
        self._end = None if budget_s is None else _STARTED + budget_s

    def elapsed_s(self) -> float:
        """Seconds since this program started."""
        return time.monotonic() - _STARTED

    def enough(self, ranks: Ranks, seconds: float) -> bool:
        """True if something of that length still fits, on every rank."""
        late = self._end is not None and time.monotonic() + 1.1 * seconds > self._end
        return not ranks.any(late)


def jobs(args: argparse.Namespace) -> list[Job]:
    """One for each method, of the same teacher, data and sizes."""
    path = args.job or config_path(SHAPES[args.shape])
    settings = list(args.settings)
    if args.strategy is not None:
        settings.append(f"parallel.strategy={args.strategy}")
    if args.accumulation is not None:
        settings.append(f"train.accumulation={args.accumulation}")
    base = load_job(path, settings)
    if not args.methods:
        return [base]
    found = []
    for method in args.methods.split(","):
        beside = method_job(path, base.method.name, method)
        if method != base.method.name and not beside.is_file():
            raise SystemExit(f"--methods {method}: there is no {beside}")
        found.append(load_job(beside if method != base.method.name else path, settings))
    return found


class Report:
    """The JSON, written anew whenever something was measured.

    Args:
        path: The file; None writes nothing.
        first: True if this process writes.
        content: The content before any measurement.
    """

    def __init__(self, path: Path | None, first: bool, content: dict[str, Any]) -> None:
        self.content = {**content, "complete": False, "elapsed_s": 0.0, "methods": []}
        self._path = path if first else None
        self.write()

    def write(self) -> None:
        """Replaces the file at once: whoever reads it finds it whole."""
        self.content["elapsed_s"] = time.monotonic() - _STARTED
        if self._path is not None:
            write_own(self._path, json.dumps(self.content, indent=2) + "\n", "bench_train")


def table(report: dict[str, Any]) -> str:
    """The methods side by side, in Markdown."""
    results = [result for result in report["methods"] if "seconds" in result]
    shown = [name for name in PHASES if any(r["phases_s"][name] > 0 for r in results)]
    head = [
        "method",
        "s",
        "forwards",
        *shown,
        "communication, share",
        "TFLOP/s",
        "MFU",
        "peak GiB",
        "s to the first",
    ]
    lines = [head, ["---"] * len(head)]
    for result in results:
        mfu = result.get("mfu")
        lines.append(
            [
                result["method"],
                f"{result['seconds']:.3f}",
                f"{result['forward_equivalents']:.1f}",
                *(f"{result['phases_s'][name]:.3f}" for name in shown),
                f"{result['communication_share']:.1%}",
                f"{result['tflops_per_s']:.3g}",
                "" if mfu is None else f"{mfu:.1%}",
                f"{result['peak_memory_gib']:.1f}" if "peak_memory_gib" in result else "",
                f"{result['seconds'] / results[0]['seconds']:.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """The machine, the versions and how busy it was."""
    return {
        "command": " ".join(["python -m tools.benchmarks.bench_train", *sys.argv[1:]]),
        "device": device.type,
        "processes": ranks.size,
        **machines.describe(device),
        "load": os.getloadavg()[0],
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures in this process, which may be one of several.

    Returns:
        What the JSON has.
    """
    chosen, clock = jobs(args), Clock(args.budget)
    device = training_device()
    ranks = connect(chosen[0].parallel.strategy, device)
    ranks = replace(ranks, share=chosen[0].parallel.sequence)
    machine = describe(device, ranks)
    peak = args.peak_tflops or gpu_peak_tflops(machine.get("gpu", ""))
    machine["peak_tflops"] = peak
    written = Report(args.out, ranks.first, {"machine": machine, "job": chosen[0].to_yaml()})
    one_by_one = device.type == "cuda" and ranks.size == 1
    groups = [[job] for job in chosen] if one_by_one else [chosen]
    for number, group in enumerate(groups):
        if number:
            connect(chosen[0].parallel.strategy, device)  # the one before has left
        benches: list[TrainingBench] = []
        try:
            measure_together(args, group, ranks, benches, clock, partial(_note, written, peak))
        except RuntimeError as error:
            if not one_by_one:
                raise
            rows = written.content["methods"]
            name = group[0].method.name
            row = next((row for row in rows if row["method"] == name), {"method": name})
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
            written.content["methods"] = [*(r for r in rows if r["method"] != name), row]
            written.write()
        for bench in benches[-1:]:  # those that took turns have one process group
            bench.close()
    rows = written.content["methods"]
    written.content["complete"] = all(
        row.get("iterations") == args.iterations and not ({"skipped", "failed"} & row.keys())
        for row in rows
    )
    written.write()
    return written.content


def measure_together(
    args: argparse.Namespace,
    group: list[Job],
    ranks: Ranks,
    benches: list[TrainingBench],
    clock: Clock,
    note: Callable[[list[TrainingBench], bool], None],
) -> None:
    """Measures methods in turns.

    Args:
        args: The command line.
        group: The methods' jobs.
        ranks: The processes of the run.
        benches: Takes each method's trainer, as soon as there is one.
        clock: Ends the measurements.
        note: Told of every new figure, and whether it is the last of these methods.
    """
    for job in group:
        benches.append(TrainingBench(job, _model(args, job, ranks), ranks, len(group) == 1))
    for bench in benches:
        bench.warm_up(args.warmup, partial(clock.enough, ranks))
    note(benches, False)
    for _ in range(args.iterations):
        for bench in benches:
            if clock.enough(ranks, bench.last_s):
                bench.measure()
                note(benches, False)
    for bench in benches:
        if len(bench.seconds) < args.iterations:
            bench.skipped.append("iterations: no time left")
        # Profiling takes longer than an iteration, and reading the profile takes its time.
        if not clock.enough(ranks, 2 * bench.last_s + (15 if ranks.device.type == "cuda" else 0)):
            bench.skipped.append("profile: no time left")
            continue
        trace = None
        if args.trace is not None:
            trace = args.trace.with_name(f"{args.trace.stem}_{bench.job.method.name}.json")
        bench.profile(trace)
        note(benches, False)
    note(benches, True)


def _model(args: argparse.Namespace, job: Job, ranks: Ranks) -> Model:
    if args.shape is not None:
        return open_random_wan(job.teacher.path, ranks.device)
    return open_teacher(job.teacher)


def _note(written: Report, peak: float | None, benches: list[TrainingBench], done: bool) -> None:
    """Puts the methods' rows, which are the newest, into the report."""
    names = [bench.job.method.name for bench in benches]
    rows = [row for row in written.content["methods"] if row["method"] not in names]
    for bench in benches:
        row = bench.report(peak)
        if done and bench.ranks.first:
            row["planned_memory_gib"] = bench.planned_memory()
            if "peak_memory_gib" in row:
                row["memory_to_plan"] = row["peak_memory_gib"] / row["planned_memory_gib"]["total"]
        rows.append(row)
    written.content["methods"] = rows
    written.write()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("job", type=Path, nargs="?", metavar="JOB.yaml", help="a job to measure")
    parser.add_argument("--shape", choices=SHAPES, help="a shipped job, with random weights")
    parser.add_argument("--methods", help="methods to measure, A,B,C; default: the job's own")
    parser.add_argument("--strategy", choices=("local", "zero3"), help="default: the job's own")
    parser.add_argument("--accumulation", type=int, help="micro-batches of an update")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--iterations",
        type=int,
        default=4,
        help="measured iterations, a multiple of the steps; default 4",
    )
    parser.add_argument("--warmup", type=int, default=2, help="iterations before those; default 2")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="time for all of it")
    parser.add_argument("--nproc", type=int, default=1, help="processes to start here")
    parser.add_argument(
        "--peak-tflops", type=float, help="the GPU's peak, for MFU; known GPUs are recognised"
    )
    parser.add_argument("--trace", type=Path, help="FILE.json: a Chrome trace of each method")
    parser.add_argument("--out", type=Path, help="FILE.json: everything that was measured")
    args = parser.parse_args()
    if (args.job is None) == (args.shape is None):
        parser.error("give either JOB.yaml or --shape")
    return args


_AsWritten = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)


def _without_nproc(words: list[str]) -> list[str]:
    """The ranks' own command line; torchrun would take the option for one of its own."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--nproc"):
            kept.append(word)
        skip = word == "--nproc"
    return kept


def main() -> None:
    """Measures, prints a table, writes JSON."""
    args = arguments()
    if args.nproc > 1 and "RANK" not in os.environ:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={args.nproc}"]
        own = _without_nproc(sys.argv[1:])
        command = [sys.executable, "-m", *launcher, "-m", "tools.benchmarks.bench_train", *own]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
    report = run(args)
    if int(os.environ.get("RANK", "0")) == 0:
        print(table(report), flush=True)
    if any("failed" in row for row in report["methods"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
