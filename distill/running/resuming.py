"""Chooses the state that a run resumes from, and checks that it is of the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distill.building import StartingPoint
from distill.data import image_digests, load_images, prompts_digest
from distill.updates import Iteration
from lightx2v_sgmd.families.teacher import saved_job
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files.run_files import METRICS, TRAINER_STATE
from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import set_aside
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER, Ranks
from lightx2v_sgmd.system.errors import UserError

# Keys that may change between two parts of a run: its folder, its length and its layout. The batch
# is compared as a whole, the prompts by content.
_FREE = (
    "output.",
    "parallel.",
    "data.",
    "train.iterations",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.sample_every",
    "train.sample_videos",
    "train.teacher_sample_steps",
    "train.keep_checkpoints",
    "train.micro_batch",
    "train.accumulation",
)


def trainer_state(
    job: Job, prompts: list[str], ranks: Ranks, digests: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Collects the facts that a resumed run must share, beside its job.

    Args:
        job: The job.
        prompts: The prompts that it trains on.
        ranks: The processes.
        digests: The hash of the teacher's network, and of each network that a role starts from in
            its place, by role; from ``weights_digest``.
    """
    return {
        **{f"{role}_sha256": digest for role, digest in (digests or {}).items()},
        "global_batch": job.train.micro_batch * job.train.accumulation * ranks.data_size,
        "prompts_sha256": prompts_digest([*prompts, *image_digests(load_images(job))]),
        "schedule": job.steps.to_dict(),
    }


def choose_checkpoint(resume: str, run: Path, note: Callable[[str], None]) -> Path | None:
    """Chooses the complete checkpoint to resume from, or None to start from the beginning.

    A damaged checkpoint of the run is renamed to ``NAME.damaged`` if an earlier one is complete.

    Args:
        resume: ``auto``, ``never`` or the path of a run or a checkpoint.
        run: The folder of this run, which this process has locked.
        note: Function that shows the user a line.

    Raises:
        UserError: there is nothing to resume from, or the folder is in use; nothing was changed.
    """
    for left in store.remove_leftovers(run):
        note(f"{left}: is not part of a checkpoint and was not removed")
    mine = store.checkpoints(run)
    started = bool(mine) or (run / METRICS).exists()
    if resume == "never" or (resume != "auto" and not _inside(Path(resume), run)):
        if started:
            raise UserError(
                f"output.dir: {run} already contains a run; resume it (--resume auto), "
                "choose another output.dir or remove that folder"
            )
    if resume == "never":
        return None
    if resume != "auto":
        checkpoint = store.find_checkpoint(Path(resume))
        newer = [f for f in mine if store.step_of(f) > store.step_of(checkpoint)]
        if newer and _inside(checkpoint, run):
            raise UserError(
                f"--resume: {run} has {newer[0].name}, which is newer than {checkpoint.name}; "
                "remove the newer ones, or choose another output.dir"
            )
        return checkpoint
    return _newest_whole(mine, note)


def _newest_whole(mine: list[Path], note: Callable[[str], None]) -> Path | None:
    """Finds the newest complete checkpoint and renames the damaged ones after it."""
    damaged: dict[Path, str] = {}
    for folder in mine:
        try:
            store.verify(folder)
        except store.DamagedError as error:
            damaged[folder] = str(error)
            continue
        for wrong, reason in damaged.items():
            set_aside(wrong, partial(_damaged_name, wrong.name))
            note(f"{reason}; resuming from the checkpoint before it")
        return folder
    if damaged:
        raise UserError(
            f"{next(iter(damaged.values()))}; there is no complete checkpoint before it, and "
            "nothing was changed; choose another output.dir to start again"
        )
    return None


def _damaged_name(name: str, number: int) -> str:
    return f"{name}.damaged{number if number > 1 else ''}"


def _inside(path: Path, run: Path) -> bool:
    return path.resolve().is_relative_to(run.resolve())


def check_same_run(folder: Path, job: Job, state: Mapping[str, Any]) -> StartingPoint:
    """Finds the point at which this job resumes from a checkpoint.

    Raises:
        UserError: the job differs in a key that changes the result; the message names the first.
    """
    saved = store.read_trainer_state(folder)
    remedy = "restore it, or start again with another output.dir"
    ours = _flat(parse_value(job.to_yaml(), "the job"))
    # A job of an older version has no value for newer keys, which then have their defaults.
    old = saved_job(folder / "job.yaml", job.teacher)
    theirs = _flat(parse_value(old.to_yaml(), "the job"))
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        if key.startswith(_FREE) or ours.get(key) == theirs.get(key):
            continue
        raise UserError(
            f"{key}: the job says {ours.get(key)}, but checkpoint {folder} was trained with "
            f"{theirs.get(key)}; {remedy}"
        )
    if saved.get("prompts_sha256") != state["prompts_sha256"]:
        raise UserError(
            f"data.prompts: the prompts are not those that {folder} was trained with; {remedy}"
        )
    paths = {
        TEACHER: job.teacher.path,
        STUDENT: job.student.path,
        FAKE_SCORE: job.fake_score.path,
    }
    for role, path in paths.items():
        before, now = (each.get(f"{role}_sha256") for each in (saved, state))
        if before is not None and now is not None and before != now:
            raise UserError(
                f"{role}.path: the weights in {path} are not those that {folder} was trained with; "
                f"{remedy}"
            )
    batch = saved.get("global_batch")
    if batch != state["global_batch"]:
        if type(batch) is not int or batch < 1:
            raise UserError(f"{folder / TRAINER_STATE}: does not say the global batch; {remedy}")
        remedy = _same_batch(job, batch, int(state["global_batch"]))
        raise UserError(
            f"train.micro_batch: with train.accumulation and the number of processes it makes a "
            f"global batch of {state['global_batch']}, not the {batch} of "
            f"{folder}; {remedy}, or start again with another output.dir"
        )
    # Checkpoints of version 0.1 call it "begun".
    begun = saved.get("partial_iteration", saved.get("begun"))
    try:
        iteration = None if begun is None else TypeAdapter(Iteration).validate_python(begun)
    except ValidationError as error:
        raise UserError(
            f"{folder / TRAINER_STATE}: the iteration that was under way is not as it was "
            "written; use another checkpoint"
        ) from error
    return StartingPoint(int(saved["step"]), folder, iteration)


def _same_batch(job: Job, saved: int, ours: int) -> str:
    """Says which settings give the global batch of the checkpoint."""
    train = job.train
    processes = ours // (train.micro_batch * train.accumulation)  # those of one video count as one
    if saved % processes:
        return f"the number of processes must divide {saved}"
    each = saved // processes
    if each % train.micro_batch == 0:
        return f"set train.accumulation={each // train.micro_batch}"
    return f"on so many processes, train.micro_batch times train.accumulation must be {each}"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}{key}.").items()}
