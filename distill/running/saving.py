"""Saves a run's state, and says how much space a checkpoint takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from torch import Tensor

from distill.updates import Iteration
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.teacher import open_own_models
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files import student_weights
from lightx2v_sgmd.files.run_files import CHECKPOINTS, TRAINER_STATE
from lightx2v_sgmd.files.student_weights import WeightFile, divided
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.files.tensors.safetensors_writer import float32_parts, safetensors_header
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.networks.adapters import adapter_metadata, trained_shapes
from lightx2v_sgmd.outputs import OutputLock
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, Strategy, expert_role, role_of
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.disk import free_bytes
from lightx2v_sgmd.system.errors import UserError


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
        final = run / CHECKPOINTS / store.checkpoint_name(step)
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
        ranks, metadata = self.strategy.ranks, schedule_metadata(self.job.steps)
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
            entries |= pending.write_text(TRAINER_STATE, state)
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
        networks: dict[tuple[bool, int], list[WeightFile]] = {}
        students = [role for role in self.strategy.trained if role_of(role) == STUDENT]
        for averaged in (False, True) if self.job.train.ema else (False,):
            for expert in range(len(students)):
                first = sum(map(len, networks.values()))
                stem = student_weights.stem(averaged, expert)
                networks[averaged, expert] = divided(stem, shapes, ranks.size, first, most)
        mine = {f.name: f for files in networks.values() for f in files if f.rank == ranks.rank}
        feeds: dict[str, Feed] = {name: Queue(maxsize=2) for name in mine}
        with ThreadPoolExecutor(max_workers=max(1, len(mine))) as pool:
            written = [
                pool.submit(_write_fed, pending, file, feeds[name], metadata)
                for name, file in mine.items()
            ]
            try:
                for (averaged, expert), files in networks.items():
                    file_of = {name: file for file in files for name in file.shapes}
                    to = {name: file.rank for name, file in file_of.items()}
                    role = expert_role(STUDENT, expert)
                    for name, tensor in self.strategy.whole_tensors(role, averaged, to):
                        feeds[file_of[name].name].put((name, tensor))
            finally:
                for feed in feeds.values():
                    feed.put(None)
        entries = {name: entry for part in written for name, entry in part.result().items()}
        for which, files in networks.items():
            if ranks.first and len(files) > 1:
                name, text = student_weights.index(student_weights.stem(*which), files)
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


def checkpoint_parts(job: Job, model: Model) -> tuple[int, int]:
    """Computes a checkpoint's bytes in files of whole weights and in slices.

    They are exact to a percent; a discriminator's heads are less than that.
    """
    adapters = {STUDENT: job.student.adapters, FAKE_SCORE: job.fake_score.adapters}
    own = open_own_models(job, model)
    whole = slices = 0
    for role, (files, states) in checkpoint_copies(job).items():
        shapes = trained_shapes(own.get(role, model), adapters[role])
        one = 4 * sum(shape.numel() for shape in shapes.values())
        one += len(safetensors_header(float32_parts(shapes), {}))
        whole += files * one * len(model.experts)
        slices += states * one * len(model.experts)
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
