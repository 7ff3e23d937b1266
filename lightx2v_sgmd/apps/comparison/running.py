"""Runs a comparison's tasks, several processes side by side, and survives what happens to them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from lightx2v_sgmd.apps.comparison import tasks as work
from lightx2v_sgmd.apps.comparison.plan import Plan
from lightx2v_sgmd.apps.comparison.tasks import Task
from lightx2v_sgmd.outputs import open_log
from lightx2v_sgmd.system.console import note, progress
from lightx2v_sgmd.system.errors import FULL_DISK
from lightx2v_sgmd.system.processes import handling, process_environment, release, start_module

_WORKER: Final = "lightx2v_sgmd.apps.comparison.worker"
_POLL_S = 0.1
_COUNT_S = 2.0
"""Seconds between two counts of what the running tasks have done."""


def run_tasks(pool: Pool, tasks: Sequence[Task], label: str, quiet: bool) -> dict[Task, str]:
    """Does the tasks that are not done, each in a process of its own.

    Args:
        pool: Runs them.
        tasks: In the order in which they start.
        label: The name of all of it.
        quiet: Show nothing.

    Returns:
        What went wrong, by task; the others are done.

    Raises:
        KeyboardInterrupt: it was asked to stop, and all processes have saved and ended.
    """
    plan = pool.plan
    waiting = [task for task in tasks if not work.is_done(plan, task)]
    if not waiting:
        return {}
    total = sum(work.units(plan, task) for task in tasks)
    tally = Tally(plan, tasks)
    failures: dict[Task, str] = {}
    with _stopping_on_signal(pool, quiet), progress(total, label, quiet, done=tally.done) as bar:
        looked_s = time.monotonic()
        while waiting or pool.running:
            while waiting and len(pool.running) < pool.workers and not pool.stopped:
                tally.mine.add(waiting[0])
                pool.start(waiting.pop(0))
            for task, problem in pool.ended():
                if problem is not None and not pool.stopped:
                    failures[task] = problem
                    note(f"{task.name}: {problem}", quiet)
            if pool.stopped:
                waiting = []
            if time.monotonic() - looked_s > _COUNT_S or not (waiting or pool.running):
                looked_s = time.monotonic()
                worked, found = tally.count()
                bar.correct(found)
                if worked:
                    bar.advance(worked, ", ".join(t.name for t in pool.running))
            time.sleep(_POLL_S)
    if pool.stopped:
        raise KeyboardInterrupt
    return failures


class Tally:
    """The progress of some tasks, and the processes that make it.

    A run that goes on after it was killed first goes back to its checkpoint, and another process
    may work in the same folder: neither tells how fast this one is.

    Args:
        plan: The comparison.
        tasks: Those that count.

    Attributes:
        mine: The tasks that this process has started.
    """

    def __init__(self, plan: Plan, tasks: Sequence[Task]) -> None:
        self._plan = plan
        self._seen = {task: work.units_done(plan, task) for task in tasks}
        self.mine: set[Task] = set()

    @property
    def done(self) -> int:
        """Units, at the last count."""
        return sum(self._seen.values())

    def count(self) -> tuple[int, int]:
        """Units done since the last count by this process, and how many others came or went."""
        worked = found = 0
        for task, before in self._seen.items():
            change = work.units_done(self._plan, task) - before
            self._seen[task] += change
            if change > 0 and task in self.mine:
                worked += change
            else:
                found += change
        return worked, found


class Pool:
    """Processes that work on a comparison.

    Args:
        plan: The comparison.
        workers: Number of tasks that run side by side; each gets its share of the cores.
        nproc: Processes of each training run.

    Attributes:
        running: The process of each task that runs.
        stopped: The number of requests to stop.
        environment: The environment of the processes.
        mistakes: The failed tasks whose reason is the user's to mend, such as a full disk.
    """

    def __init__(self, plan: Plan, workers: int, nproc: int = 1) -> None:
        self.plan, self.workers, self.nproc = plan, workers, nproc
        self.mistakes: set[Task] = set()
        self.running: dict[Task, subprocess.Popen[bytes]] = {}
        self.stopped = 0
        self.environment = process_environment(workers * nproc)

    def start(self, task: Task) -> None:
        """Starts a task's process; what it says goes to its log."""
        log = work.log_file(self.plan, task)
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [str(self.plan.out), task.to_json(), str(self.nproc)]
        with open_log(log) as file:
            self.running[task] = start_module(_WORKER, arguments, self.environment, file)

    def ended(self) -> Iterator[tuple[Task, str | None]]:
        """Tasks whose process is over, and what was wrong if it failed."""
        for task, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[task]
            release(process)
            if code == 0 and work.is_done(self.plan, task):
                yield task, None
            else:
                if code in (2, work.NO_SPACE):
                    self.mistakes.add(task)
                yield task, self._problem(task, code)

    def _problem(self, task: Task, code: int) -> str:
        if code == work.NO_SPACE:
            return FULL_DISK
        log = work.log_file(self.plan, task)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        said = said or [f"its process ended with code {code}: {line}" for line in lines if line]
        reason = said[-1] if said else f"its process ended with code {code}"
        return f"{reason} (log: {log})"

    def stop(self) -> None:
        """Asks all processes to save and end; the second time, ends them."""
        self.stopped += 1
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if self.stopped == 1 else signal.SIGKILL)


@contextmanager
def _stopping_on_signal(pool: Pool, quiet: bool) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM stop the pool."""

    def receive(number: int, frame: object) -> None:
        pool.stop()
        if pool.stopped == 1:
            note("stopping, the runs save where they are; again to stop at once", quiet)

    handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), receive)
    with handling(handlers):
        try:
            yield
        finally:
            for process in pool.running.values():  # an error of ours leaves no orphans
                process.terminate()
