"""Processes side by side: that failures stay their own, and that a signal reaches all."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.apps.comparison import running
from lightx2v_sgmd.apps.comparison import tasks as work
from lightx2v_sgmd.apps.comparison.plan import Plan
from lightx2v_sgmd.apps.comparison.planning import make_plan
from lightx2v_sgmd.apps.comparison.running import Pool, Tally, run_tasks
from lightx2v_sgmd.apps.comparison.tasks import Task, outputs
from lightx2v_sgmd.system.console import Lines, duration
from lightx2v_sgmd.system.errors import FULL_DISK
from tests.training import job_file

# Stands in for the interpreter: does a task as its row's name says, without torch.
WORKER = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
out, task = pathlib.Path(sys.argv[3]), json.loads(sys.argv[4])
row = task["row"]
with (out / "started").open("a") as file:
    file.write(row + " " + os.environ["OMP_NUM_THREADS"] + "\\n")
if row == "dmd2":
    print("error: the loss is not finite", file=sys.stderr)
    sys.exit(2)
if row == "tsg_fisher":
    sys.exit(28)
if row == "sid":
    os.kill(os.getpid(), signal.SIGKILL)
if row == "adm":
    def save(number, frame):
        (out / "saved").write_text("")
        sys.exit(130)
    signal.signal(signal.SIGTERM, save)
    (out / "waiting").write_text("")
    time.sleep(900)
for name in json.loads((out / "outputs.json").read_text())[row]:
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
"""


@pytest.fixture
def plan(tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    import json

    methods = ["sgmd", "dmd2", "sid", "tsg_sim", "adm", "tsg_fisher"]
    plan = make_plan(job_file(tiny_teacher, tmp_path), tmp_path / "out", methods=methods)
    plan.out.mkdir()
    made = {row: [str(path) for path in outputs(plan, Task(row, 0))] for row in methods}
    (plan.out / "outputs.json").write_text(json.dumps(made))
    worker = tmp_path / "python"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return plan


def started(plan: Plan) -> list[str]:
    return [line.split()[0] for line in (plan.out / "started").read_text().splitlines()]


def test_a_failing_task_is_reported_and_the_others_go_on(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [Task(row, 0) for row in ("dmd2", "sid", "sgmd", "tsg_sim")]
    failures = run_tasks(Pool(plan, 2), tasks, "comparing", quiet=False)
    assert [task.row for task in failures] == ["dmd2", "sid"] or set(failures) == set(tasks[:2])
    log = plan.out / "logs" / "dmd2_seed_0.log"
    assert failures[tasks[0]] == f"the loss is not finite (log: {log})"
    assert "ended with code -9" in failures[tasks[1]]
    assert sorted(started(plan)) == ["dmd2", "sgmd", "sid", "tsg_sim"]
    said = capsys.readouterr().err
    assert "dmd2 seed 0: the loss is not finite" in said and "comparing" in said
    # Again: what is done is left alone, what failed is tried once more.
    assert set(run_tasks(Pool(plan, 1), tasks, "comparing", quiet=True)) == set(tasks[:2])
    assert sorted(started(plan)[4:]) == ["dmd2", "sid"]
    assert run_tasks(Pool(plan, 1), tasks[2:], "comparing", quiet=True) == {}


def test_a_full_disk_is_the_users_to_mend(plan: Plan) -> None:
    tasks = [Task(row, 0) for row in ("tsg_fisher", "dmd2", "sid", "sgmd")]
    pool = Pool(plan, 2)
    failures = run_tasks(pool, tasks, "comparing", quiet=True)
    assert failures[tasks[0]] == FULL_DISK
    assert pool.mistakes == set(tasks[:2]) and failures.keys() == set(tasks[:3])


def test_workers_share_the_cores(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    run_tasks(Pool(plan, 2), [Task("sgmd", 0)], "comparing", quiet=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_tasks(Pool(plan, 2), [Task("tsg_sim", 0)], "comparing", quiet=True)
    assert (plan.out / "started").read_text().splitlines() == ["sgmd 4", "tsg_sim 3"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert Pool(plan, 2, nproc=2).environment["OMP_NUM_THREADS"] == "2"


def test_a_signal_lets_the_workers_save_and_starts_no_more(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        while not (plan.out / "waiting").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_tasks(Pool(plan, 1), [Task("adm", 0), Task("sgmd", 0)], "comparing", quiet=False)
    thread.join()
    assert (plan.out / "saved").exists() and started(plan) == ["adm"]
    assert "the runs save where they are" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_only_work_of_this_process_counts(plan: Plan) -> None:
    mine, other = Task("sgmd", 0), Task("sid", 0)

    def iterations(task: Task, count: int) -> None:
        trace = plan.run(task.row, task.seed) / "metrics.jsonl"
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text("{}\n" * count)

    iterations(mine, 4)
    tally = Tally(plan, [mine, other])
    assert tally.done == 4 and tally.count() == (0, 0)
    tally.mine.add(mine)
    iterations(mine, 2)  # back to its checkpoint
    iterations(other, 3)
    assert tally.count() == (0, 1)
    iterations(mine, 5)
    assert tally.count() == (3, 0) and tally.done == 8


def test_the_time_left_after_a_run_went_back(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at its 4th of 5 iterations, it takes 10 s for each of the last three."""
    task, clock = Task("sgmd", 0), [0.0]
    total, done = work.units(plan, task), iter([4, 2, 3])
    monkeypatch.setattr(work, "units_done", lambda plan, task: next(done, total))
    monkeypatch.setattr(running, "_COUNT_S", 0.0)

    class Slow(Pool):
        def ended(self) -> Any:
            clock[0] += 10
            if clock[0] >= 30:
                yield from super().ended()

    stream = io.StringIO()

    def lines(total: int, label: str, quiet: bool, done: int) -> Any:
        bar = Lines(total, label, stream, done=done, clock=lambda: clock[0])
        return contextlib.nullcontext(bar)

    monkeypatch.setattr(running, "progress", lines)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    run_tasks(Slow(plan, 1), [task], "comparing", quiet=True)
    first = stream.getvalue().splitlines()[0]
    assert first.startswith(f"comparing 3/{total}  {duration(20 * (total - 3))} left"), first
