"""The pieces of work of a comparison: what each leaves behind, and whether it is done.

Done is what is on the disk, nothing else; so a comparison goes on wherever it was interrupted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from lightx2v_sgmd.apps.comparison.plan import TEACHER, UNDISTILLED, Plan, file_name
from lightx2v_sgmd.files.run_files import METRICS
from lightx2v_sgmd.sampling.teacher_steps import TEACHER_STEPS


@dataclass(frozen=True)
class Task:
    """One process's work.

    Attributes:
        row: ``teacher``, which includes its undistilled steps, or a trained row's label.
        seed: Seed of training and of the videos.
        step: None to train and measure what comes of it; otherwise to measure this snapshot in
            full.
    """

    row: str
    seed: int
    step: int | None = None

    @property
    def name(self) -> str:
        """The task's name for people and log files."""
        step = "" if self.step is None else f" step {self.step}"
        return f"{self.row} seed {self.seed}{step}"

    def to_json(self) -> str:
        """The task as JSON, for the command line of a worker."""
        return json.dumps(asdict(self))


def all_tasks(plan: Plan) -> list[Task]:
    """Everything before the tables.

    The teacher comes first, which every table needs, then one seed of all rows after the other: a
    comparison that is cut short can be reported on as far as it is.
    """
    teacher = [Task(TEACHER, seed) for seed in plan.seeds]
    return [*teacher, *(Task(row, seed) for seed in plan.seeds for row in plan.jobs)]


def outputs(plan: Plan, task: Task) -> list[Path]:
    """The measurements that a task makes."""
    if task.step is not None:
        return [plan.measurement(task.row, task.seed, task.step)]
    if task.row == TEACHER:
        return [plan.measurement(row, task.seed, 0) for row in (UNDISTILLED, TEACHER)]
    *curve, last = plan.snapshots()
    files = [plan.measurement(task.row, task.seed, step, full=False) for step in curve]
    return [*files, plan.measurement(task.row, task.seed, last)]


def is_done(plan: Plan, task: Task) -> bool:
    """True if all that a task makes is there."""
    return all(path.is_file() for path in outputs(plan, task))


def units(plan: Plan, task: Task) -> int:
    """A task's work, for the time left: one unit is an iteration of SGMD."""
    if task.step is not None:
        return full_units(plan, 4)
    if task.row == TEACHER:
        return full_units(plan, 2 * TEACHER_STEPS + 4)
    training = round(plan.job.train.iterations * iteration_units(plan, task.row))
    return training + (len(plan.snapshots()) - 1) * curve_units(plan) + full_units(plan, 4)


def units_done(plan: Plan, task: Task) -> int:
    """The amount of a task that is on the disk."""
    if is_done(plan, task):
        return units(plan, task)
    if task.row == TEACHER:
        made = sum(1 for _ in teacher_folder(plan, task.seed).glob("batch_*.npz"))
        return min(units(plan, task) - 1, units(plan, task) * made // teacher_batches(plan))
    if task.step is not None:
        return 0
    trace = plan.run(task.row, task.seed) / METRICS
    done = trace.read_bytes().count(b"\n") if trace.is_file() else 0
    curve = [path for path in outputs(plan, task)[:-1] if path.is_file()]
    return round(done * iteration_units(plan, task.row)) + len(curve) * curve_units(plan)


def iteration_units(plan: Plan, row: str) -> float:
    """An iteration's work; a fake-score update of its own, rollout included, is near 0.4."""
    updates = plan.jobs[row].method.fake_score_updates
    return 1 + 0.4 * updates if updates > 1 else 1.0


def full_units(plan: Plan, nfe: int) -> int:
    """A full measurement's work."""
    settings = plan.settings
    return _sampling_units(plan, nfe, settings.prompts + settings.groups * (settings.copies - 1))


def curve_units(plan: Plan) -> int:
    """A snapshot's measurement's work."""
    return _sampling_units(plan, 4, plan.settings.curve_prompts)


def _sampling_units(plan: Plan, nfe: int, videos: int) -> int:
    """An iteration runs 13.5 forwards of each sample; decoding and measuring cost a third more."""
    train = plan.job.train
    return max(1, round(1.3 * videos * nfe / (13.5 * train.micro_batch * train.accumulation)))


def teacher_folder(plan: Plan, seed: int) -> Path:
    """The folder of the teacher's videos."""
    return plan.out / "teacher" / f"seed_{seed}"


NO_SPACE: Final = 28
"""Exit code of a task's process that found the disk full, where it cannot even write its log."""
TEACHER_BATCH = 16


def teacher_batches(plan: Plan) -> int:
    """The number of files of the teacher's videos of one seed."""
    settings = plan.settings
    videos = settings.prompts + settings.groups * (settings.copies - 1)
    return -(-videos // TEACHER_BATCH)


def log_file(plan: Plan, task: Task) -> Path:
    """The log of a task's process."""
    return plan.out / "logs" / f"{file_name(task.name)}.log"
