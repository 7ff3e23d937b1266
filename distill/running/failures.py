"""Saves the state of a run whose loss or gradient is not finite, and replays its last update.

The folder ``RUN/failed/step_000012/`` is a checkpoint with all weights before the update that
broke. Its ``failure.json`` has the update, its loss terms, videos, prompts and score times.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.building import StartingPoint, build_trainer, open_latents
from distill.data import image_digests, load_images, load_prompts, prompts_digest
from distill.loss_terms import NotFiniteError, UpdateIndex
from distill.running.saving import Saver
from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files.run_files import TRAINER_STATE
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import connect, training_device
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import own_record, read_record

FILE = "failure.json"
_ANOTHER = "name the folder of another failure"
_REMEDY = (
    "lower the learning rates or remove the prompts that broke it, and resume from the last "
    "checkpoint"
)


def save_failed_state(error: NotFiniteError, saver: Saver, prompts: Sequence[str]) -> UserError:
    """Saves the state and returns the error for the user; all ranks call it."""
    indices = {video.prompt for videos in error.videos.values() for video in videos}
    content = {
        **error.to_dict(),
        "captions": {prompt: prompts[prompt] for prompt in sorted(indices)},
        "processes": saver.strategy.ranks.size,
    }
    name = store.checkpoint_name(error.index.iteration + 1)
    folder = saver.job.output.dir / "failed" / name
    try:
        text = json.dumps(content, indent=2) + "\n"
        saver.write(folder, error.index.iteration, {FILE: text})
    except UserError as problem:
        return UserError(f"{error}; its state could not be saved ({problem}); {_REMEDY}")
    return UserError(
        f"{error}; `lightx2v-sgmd replay-failure {folder}` repeats the update; {_REMEDY}"
    )


def replay(folder: Path, launched: bool) -> NotFiniteError | None:
    """Runs the update again at which a run stopped; changes no files.

    Args:
        folder: The folder ``RUN/failed/step_N``.
        launched: True if this is one of several processes. Then the job's own strategy is used;
            otherwise one process holds everything.

    Returns:
        The error that names the term, or None if everything is finite.

    Raises:
        UserError: the folder is damaged or not a failed state.
    """
    failure = _read(folder)
    index = UpdateIndex(failure["iteration"], failure["update"], failure["batch_index"])
    changes = (
        [] if launched else ["strategy=local", "sequence=1", "offload=none", "offload_dir=null"]
    )
    job = load_job(folder / "job.yaml", [f"parallel.{change}" for change in changes])
    model = open_teacher(job.teacher)
    job = with_defaults(job, model)
    prompts, latents = load_prompts(job), open_latents(job, model)
    state = store.read_trainer_state(folder)
    if type(state.get("global_batch")) is not int or state["global_batch"] < 1:
        raise UserError(f"{folder / TRAINER_STATE}: does not say the global batch; {_ANOTHER}")
    if prompts_digest([*prompts, *image_digests(load_images(job))]) != state.get("prompts_sha256"):
        raise UserError(f"data.prompts: {job.data.prompts} has changed since the run; restore it")
    ranks = connect(job.parallel.strategy, training_device())
    ranks = replace(ranks, share=job.parallel.sequence)
    job = _with_accumulation(job, state["global_batch"], ranks.data_size)
    start = StartingPoint(index.iteration, folder)
    trainer = build_trainer(job, model, prompts, latents, ranks, start, quiet=True)
    try:
        if index.update >= len(trainer.updates(index.iteration)):
            raise UserError(
                f"{folder / FILE}: names an update that an iteration does not have; {_ANOTHER}"
            )
        trainer.try_update(index, _micro_batches(job, failure, launched))
    except NotFiniteError as error:
        return error
    finally:
        trainer.strategy.close()
    return None


def _read(folder: Path) -> dict[str, Any]:
    """Reads ``failure.json`` after a check of every file."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; name a folder RUN/failed/step_N that a failed run wrote"
        )
    store.verify(folder)
    with own_record(path, _ANOTHER):
        failure: dict[str, Any] = read_record(path)
        numbers: list[Any] = [failure[name] for name in ("iteration", "update", "batch_index")]
        numbers += [v["sample"] for videos in failure["videos"].values() for v in videos]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a number is none")
    return failure


def _with_accumulation(job: Job, global_batch: int, data_ranks: int) -> Job:
    """Sets the accumulation that gives the same global batch on these processes."""
    count, rest = divmod(global_batch, job.train.micro_batch * data_ranks)
    if rest:
        raise UserError(
            f"train.micro_batch: {job.train.micro_batch} on {data_ranks} processes does not divide "
            f"the global batch of {global_batch}; replay it in one process"
        )
    return replace(job, train=replace(job.train, accumulation=count))


def _micro_batches(job: Job, failure: dict[str, Any], launched: bool) -> Sequence[int]:
    """Lists the micro-batches that broke; all if that is unknown or if ranks share the work."""
    size = job.train.micro_batch
    broken = {video["sample"] // size for videos in failure["videos"].values() for video in videos}
    return range(job.train.accumulation) if launched or not broken else sorted(broken)
