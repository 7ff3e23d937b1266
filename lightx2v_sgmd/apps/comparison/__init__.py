"""``lightx2v-sgmd compare``: several methods on one teacher, several seeds each, one report.

``plan`` says what there is to do, ``running`` does it in processes (``worker``), ``measuring``
measures videos, ``tables`` and ``columns`` sum up, ``page`` writes the report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightx2v_sgmd.apps.comparison.columns import markdown
from lightx2v_sgmd.apps.comparison.folder import FOLDERS, writing_report
from lightx2v_sgmd.apps.comparison.page import write_page
from lightx2v_sgmd.apps.comparison.plan import TEACHER, Plan, Settings
from lightx2v_sgmd.apps.comparison.planning import make_plan
from lightx2v_sgmd.apps.comparison.running import Pool, run_tasks
from lightx2v_sgmd.apps.comparison.saved import saved_plan, write_plan
from lightx2v_sgmd.apps.comparison.tables import budget, build_results, seeds_done, step_within
from lightx2v_sgmd.apps.comparison.tasks import Task, all_tasks, is_done
from lightx2v_sgmd.outputs import locked_folder, resolved
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError

__all__ = ["Comparison", "RunsFailedError", "compare", "make_plan"]

UNITS = ("forwards", "seconds")


class RunsFailedError(RuntimeError):
    """Some runs failed; the message says which, why, and where the report on the others is.

    Attributes:
        code: The exit code: 2 if all that failed is the user's to mend, 1 otherwise.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        out: The folder of the comparison.
        results: The content of ``results.json``.
    """

    out: Path
    results: dict[str, Any]


def compare(
    job_file: str | Path,
    out: str | Path,
    *,
    methods: Sequence[str] = (),
    seeds: int = 1,
    overrides: Sequence[str] = (),
    method_overrides: Sequence[str] = (),
    sweep: str | None = None,
    settings: Settings | None = None,
    every: int | None = None,
    workers: int = 1,
    nproc: int = 1,
    compute: str = "forwards",
    report_only: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Trains every method with every seed, measures all of them, and writes the tables.

    What is done already in ``out`` is not done again; the same call goes on where one stopped.

    Args:
        job_file: The job; a method's own settings come from the job beside it (``make_plan``).
        out: The folder for everything.
        methods: Names; the job's own method if there are none.
        seeds: Number of seeds, counting up from the job's ``train.seed``.
        overrides: Changes to every job, as for ``distill --set``.
        method_overrides: ``METHOD:KEY=VALUE``, changes to one method's job.
        sweep: ``KEY=A,B,C``, a row for each value.
        settings: The amount of measuring.
        every: Iterations between snapshots; a tenth of the run by default.
        workers: Runs side by side.
        nproc: Processes of each run, as for ``distill``.
        compute: The unit of the budget of equal compute: ``forwards`` or CPU ``seconds``.
        report_only: Run nothing; sum up what there is in ``out``, whatever else is asked for.
        quiet: Show nothing.

    Raises:
        UserError: something that was asked for cannot be; nothing has been run.
        RunsFailedError: runs failed; the tables of the others are written.
        KeyboardInterrupt: it was asked to stop, and everything that ran has saved.
    """
    if compute not in UNITS:
        raise UserError(f"--compute: {compute!r} is unknown; use {' or '.join(UNITS)}")
    for option, count in (("--workers", workers), ("--nproc", nproc)):
        if count < 1:
            raise UserError(f"{option}: {count} is too few; use 1 or more")
    if report_only:
        return _report(saved_plan(out, methods), compute, {}, quiet)
    with locked_folder(resolved(out), "compare", quiet, FOLDERS):
        plan = make_plan(
            job_file,
            out,
            methods=methods,
            seeds=seeds,
            overrides=overrides,
            method_overrides=method_overrides,
            sweep=sweep,
            settings=settings,
            every=every,
        )
        with writing_report(plan.out, quiet):
            write_plan(plan)
        pool = Pool(plan, workers, nproc)
        failures: dict[Task, str] = run_tasks(pool, all_tasks(plan), "comparing", quiet)
        failures |= run_tasks(pool, _cuts(plan, compute), "measuring at equal compute", quiet)
        code = 2 if failures.keys() <= pool.mistakes else 1
        return _report(plan, compute, failures, quiet, code)


def _report(
    plan: Plan, compute: str, failures: dict[Task, str], quiet: bool, code: int = 1
) -> Comparison:
    """Sums up what there is; failures end with the exit code ``code``.

    Raises:
        RunsFailedError: runs failed; the tables of the others are written.
    """
    if not seeds_done(plan, TEACHER):
        reasons = "; ".join(failures.values()) or "its videos have not been made yet"
        raise RunsFailedError(f"there is nothing to report on without the teacher: {reasons}", code)
    named = {task.name: problem for task, problem in failures.items()}
    results = build_results(plan, compute, named)
    note("writing the report", quiet)
    with writing_report(plan.out, quiet) as written:
        written.write_text("results.json", json.dumps(results, indent=1) + "\n")
        written.write_text("table.md", markdown(results))
        write_page(plan, results, written)
    if failures:
        first = next(iter(named.items()))
        raise RunsFailedError(
            f"{len(failures)} of {len(all_tasks(plan))} runs failed, first {first[0]}: {first[1]}; "
            f"the report on the others is in {plan.out}; the same command tries these again",
            code,
        )
    return Comparison(plan.out, results)


def _cuts(plan: Plan, compute: str) -> list[Task]:
    """The snapshots at equal compute that are not measured in full yet."""
    limit = budget(plan, compute)
    if limit is None:
        return []
    tasks = []
    for row in plan.jobs:
        seeds = seeds_done(plan, row)
        step = step_within(plan, row, compute, limit[1])[0] if seeds else 0
        for seed in seeds:
            task = Task(row, seed, step)
            if step and not is_done(plan, task):
                tasks.append(task)
    return tasks
