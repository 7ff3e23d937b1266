"""Saves a run's state and chooses the state that a run resumes from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

from torch import Tensor

from distill.building import StartingPoint
from distill.data import prompts_digest
from distill.updates import Iteration
from lightx2v_sgmd.families.wan import WanModel
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files import student_weights
from lightx2v_sgmd.files.safetensors_files import schedule_metadata
from lightx2v_sgmd.files.safetensors_writer import float32_parts, safetensors_header
from lightx2v_sgmd.files.student_weights import WeightFile, divided
from lightx2v_sgmd.files.yaml_loader import parse_value, read_tree
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.networks.adapters import adapter_metadata, trained_shapes
from lightx2v_sgmd.outputs import OutputLock, set_aside
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, Ranks, Strategy
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.disk import free_bytes
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
    "train.keep_checkpoints",
    "train.micro_batch",
    "train.accumulation",
)


def trainer_state(
    job: Job, prompts: list[str], ranks: Ranks, teacher_sha256: str | None = None
) -> dict[str, Any]:
    """Collects the facts that a resumed run must share, beside its job.

    Args:
        job: The job.
        prompts: The prompts that it trains on.
        ranks: The processes.
        teacher_sha256: Hash of the teacher's network, from ``weights_digest``.
    """
    teacher = {} if teacher_sha256 is None else {"teacher_sha256": teacher_sha256}
    return {
        **teacher,
        "global_batch": job.train.micro_batch * job.train.accumulation * ranks.data_size,
        "prompts_sha256": prompts_digest(prompts),
        "schedule": job.schedule.to_dict(),
    }


@dataclass(frozen=True)
class Saver:
    """Writes the checkpoints of a run.

    Attributes:
        job: The job, which is saved too.
        strategy: The networks and optimizers to save.
        state: The result of ``trainer_state``.
        lock: The run folder's lock, on the first rank.
    """

    job: Job
    strategy: Strategy
    state: Mapping[str, Any]
    lock: OutputLock | None = None

    def save(self, step: int, partial_iteration: Iteration | None = None) -> None:
        """Writes the checkpoint of a step, then removes the oldest ones. All ranks call it.

        Args:
            step: Number of iterations done.
            partial_iteration: The finished part of the next iteration.

        Raises:
            UserError: a file could not be written; earlier checkpoints are unchanged.
        """
        run = self.job.output.dir
        final = run / "checkpoints" / store.checkpoint_name(step)
        self.write(final, step, {}, partial_iteration)

        def prune() -> None:
            for folder in store.prune(run, self.job.train.keep_checkpoints):
                note(f"{folder}: was not removed, because it contains other files too")

        self.strategy.ranks.once(lambda: _guarded(prune, final))

    def write(
        self,
        final: Path,
        step: int,
        texts: Mapping[str, str],
        partial_iteration: Iteration | None = None,
    ) -> None:
        """Writes a folder with the state; it appears complete or not at all. All ranks call it.

        Args:
            final: The folder.
            step: Number of iterations done.
            texts: Contents of more files, by name.
            partial_iteration: The finished part of the next iteration.

        Raises:
            UserError: a file could not be written; the folder does not exist.
        """
        ranks, pending = self.strategy.ranks, store.PendingCheckpoint(final)
        try:
            ranks.once(lambda: _guarded(self._checked(pending.begin), final))
            entries: dict[str, store.Entry] = {}
            problem = None
            try:
                entries = self._write(pending, step, texts, partial_iteration)
            except OSError as error:
                problem = store.disk_problem(error, final)
            written = ranks.each(lambda: _raise_or(problem, entries))
            every = {name: entry for part in written for name, entry in part.items()}
            publish = self._checked(lambda: pending.publish(every))
            ranks.once(lambda: _guarded(publish, final))
        except UserError:
            ranks.once(pending.discard)
            raise

    def _checked(self, action: Callable[[], None]) -> Callable[[], None]:
        """Wraps an action: it first checks that the run folder is still this run's."""

        def act() -> None:
            if self.lock is not None:
                self.lock.check()
            action()

        return act

    def _write(
        self,
        pending: store.PendingCheckpoint,
        step: int,
        texts: Mapping[str, str],
        partial_iteration: Iteration | None,
    ) -> dict[str, store.Entry]:
        """Writes this rank's files."""
        ranks, metadata = self.strategy.ranks, schedule_metadata(self.job.schedule)
        if (adapters := self.job.student.adapters) is not None:
            metadata |= adapter_metadata(adapters)
        entries = self._write_weights(pending, metadata)
        for role in self.strategy.trained:
            slices = self.strategy.save_slices(role)
            name = f"state/{role}.{ranks.rank:05d}-of-{ranks.size:05d}.safetensors"
            sizes = {key: part.shape for key, part in slices.items()}
            entries |= pending.write_tensors(name, sizes, slices.items(), {"format": "pt"})
        if ranks.first:
            part = (
                {}
                if partial_iteration is None
                else {"partial_iteration": asdict(partial_iteration)}
            )
            state = json.dumps({"step": step, **part, **self.state}, indent=2) + "\n"
            entries |= pending.write_text("trainer.json", state)
            entries |= pending.write_text("job.yaml", self.job.to_yaml())
            for name, text in texts.items():
                entries |= pending.write_text(name, text)
        return entries

    def _write_weights(
        self, pending: store.PendingCheckpoint, metadata: Mapping[str, str]
    ) -> dict[str, store.Entry]:
        """Writes this rank's files of weights; joins every gather even if writing fails."""
        ranks, shapes = self.strategy.ranks, self.strategy.shapes
        most = sys.maxsize if self.job.student.adapters else student_weights.MOST
        networks: dict[bool, list[WeightFile]] = {}
        for averaged in (False, True) if self.job.train.ema else (False,):
            first = len(networks.get(False, ()))
            stem = student_weights.STEMS[averaged]
            networks[averaged] = divided(stem, shapes, ranks.size, first, most)
        mine = {f.name: f for files in networks.values() for f in files if f.rank == ranks.rank}
        feeds: dict[str, Feed] = {name: Queue(maxsize=2) for name in mine}
        with ThreadPoolExecutor(max_workers=max(1, len(mine))) as pool:
            written = [
                pool.submit(_write_fed, pending, file, feeds[name], metadata)
                for name, file in mine.items()
            ]
            try:
                for averaged, files in networks.items():
                    file_of = {name: file for file in files for name in file.shapes}
                    to = {name: file.rank for name, file in file_of.items()}
                    for name, tensor in self.strategy.whole_tensors(STUDENT, averaged, to):
                        feeds[file_of[name].name].put((name, tensor))
            finally:
                for feed in feeds.values():
                    feed.put(None)
        entries = {name: entry for part in written for name, entry in part.result().items()}
        for averaged, files in networks.items():
            if ranks.first and len(files) > 1:
                name, text = student_weights.index(student_weights.STEMS[averaged], files)
                entries |= pending.write_text(name, text)
        return entries


Feed = Queue[tuple[str, Tensor] | None]
"""Queue of the weights for a file, with None at the end."""


def _write_fed(
    pending: store.PendingCheckpoint, file: WeightFile, feed: Feed, metadata: Mapping[str, str]
) -> dict[str, store.Entry]:
    tensors: Iterator[Any] = iter(feed.get, None)
    try:
        return pending.write_tensors(file.name, file.shapes, tensors, metadata)
    finally:
        for _ in tensors:  # after a failed write, the other ranks still send until the end
            pass


def _guarded(action: Callable[[], None], path: Path) -> None:
    try:
        action()
    except OSError as error:
        raise UserError(store.disk_problem(error, path)) from error


def _raise_or(problem: str | None, entries: dict[str, store.Entry]) -> dict[str, store.Entry]:
    if problem is not None:
        raise UserError(problem)
    return entries


def checkpoint_copies(job: Job) -> dict[str, tuple[int, int]]:
    """Counts the float32 copies of each role's weights in a checkpoint.

    The first number counts files of whole weights, the second slices, of which each rank writes its
    own.
    """
    # The student and its EMA weights; its two moments; the fake score and its two moments.
    copies = {STUDENT: (1 + (job.train.ema > 0), 2)}
    if FAKE_SCORE in job.method.roles:
        copies[FAKE_SCORE] = (0, 3)
    return copies


def checkpoint_parts(job: Job, model: WanModel) -> tuple[int, int]:
    """Computes a checkpoint's bytes in files of whole weights and in slices.

    They are exact to a percent; a discriminator's heads are less than that.
    """
    adapters = {STUDENT: job.student.adapters, FAKE_SCORE: job.fake_score.adapters}
    whole = slices = 0
    for role, (files, states) in checkpoint_copies(job).items():
        shapes = trained_shapes(model, adapters[role])
        one = 4 * sum(shape.numel() for shape in shapes.values())
        one += len(safetensors_header(float32_parts(shapes), {}))
        whole += files * one
        slices += states * one
    return whole, slices


def check_space(run: Path, needed: int) -> None:
    """Checks that the disk has space for one checkpoint.

    Raises:
        UserError: it has not; the message says how much a checkpoint takes.
    """
    free = free_bytes(run)
    if free < needed:
        raise UserError(
            f"output.dir: {run} has {free / 2**30:.2f} GiB free, but a checkpoint takes "
            f"{needed / 2**30:.2f} GiB; free some space or choose another output.dir"
        )


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
    started = bool(mine) or (run / "metrics.jsonl").exists()
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
    theirs = _flat(read_tree(folder / "job.yaml")[0])
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
    before, now = saved.get("teacher_sha256"), state.get("teacher_sha256")
    if before is not None and now is not None and before != now:
        raise UserError(
            f"teacher.path: the weights in {job.teacher.path} are not those that {folder} was "
            f"trained with; {remedy}"
        )
    if saved.get("global_batch") != state["global_batch"]:
        remedy = _same_batch(job, int(saved["global_batch"]), int(state["global_batch"]))
        raise UserError(
            f"train.micro_batch: with train.accumulation and the number of processes it makes a "
            f"global batch of {state['global_batch']}, not the {saved['global_batch']} of "
            f"{folder}; {remedy}, or start again with another output.dir"
        )
    # Checkpoints of version 0.1 call it "begun".
    partial = saved.get("partial_iteration", saved.get("begun"))
    return StartingPoint(
        int(saved["step"]), folder, None if partial is None else Iteration(**partial)
    )


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
