"""One process of a comparison: ``python -m lightx2v_sgmd.apps.comparison.worker OUT TASK [NPROC]``.

It trains one run through the public ``distill`` and measures its snapshots, or samples and measures
the teacher. Interrupted, it leaves what it has; started again, it does the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from lightx2v_sgmd.apps.comparison import measuring
from lightx2v_sgmd.apps.comparison.measuring import Videos
from lightx2v_sgmd.apps.comparison.plan import TEACHER, UNDISTILLED, Plan
from lightx2v_sgmd.apps.comparison.saved import plan_of
from lightx2v_sgmd.apps.comparison.tasks import NO_SPACE, TEACHER_BATCH, Task, teacher_folder
from lightx2v_sgmd.families.teacher import open_teacher
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files.student_weights import MOST_EXPERTS, has_average, stem, student_files
from lightx2v_sgmd.files.tensors.dtypes import torch_type
from lightx2v_sgmd.files.video import write_frames
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.outputs import appearing, clean_temporaries, rename_new, temporary_path
from lightx2v_sgmd.sampling.sampler import VideoSampler
from lightx2v_sgmd.sampling.teacher_steps import teacher_solver
from lightx2v_sgmd.system.errors import UserError, escaped, is_full_disk
from lightx2v_sgmd.system.processes import follow_parent, leave
from lightx2v_sgmd.untrusted.json_text import RECORD, parse_json

_TOKENS_AT_ONCE = 2**15
_SHOWN_SIZE = 192
"""Pixels to which small videos are enlarged; players blur 32 pixels beyond recognition."""


def work(out: Path, task: Task, nproc: int = 1) -> None:
    """Does one task of the comparison in ``out``; trains in ``nproc`` processes.

    Raises:
        UserError: from training or sampling.
        KeyboardInterrupt: it was asked to stop.
    """
    plan = plan_of(out, task.row, task.seed)
    bench = Bench(plan, task.seed)
    if task.step is not None:
        bench.measure_snapshot(task.row, task.step)
    elif task.row in plan.jobs:
        train(plan, task, nproc)
        bench.measure_run(task.row)
    else:
        for row in (UNDISTILLED, TEACHER):
            if not plan.measurement(row, task.seed, 0).is_file():
                bench.measure_teacher(row)


def train(plan: Plan, task: Task, nproc: int) -> None:
    """Trains a run, unless it is done, and keeps the weights of each snapshot."""
    from distill import distill

    run, last = plan.run(task.row, task.seed), plan.snapshots()[-1]
    if plan.snapshot(task.row, task.seed, last).is_dir():
        return
    job = load_job(
        plan.job_file(task.row),
        [
            f"train.seed={task.seed}",
            f"output.dir={json.dumps(str(run))}",
            f"train.checkpoint_every={plan.settings.every}",
            # ``collect`` removes them, when it has taken what it wants.
            f"train.keep_checkpoints={len(plan.snapshots()) + 2}",
        ],
    )
    with collecting(run, plan.snapshots()):
        distill(job, nproc=nproc, quiet=True)
    if not plan.snapshot(task.row, task.seed, last).is_dir():
        raise UserError(f"{run}: has no checkpoint of step {last}; remove that folder")
    store.prune(run, 1)


@contextmanager
def collecting(run: Path, steps: Collection[int], every_s: float = 1.0) -> Iterator[None]:
    """Inside, each checkpoint's weights are kept under ``snapshots/``, old checkpoints removed.

    A checkpoint is seven times as large as the weights that measuring needs.
    """
    over = threading.Event()

    def follow() -> None:
        while not over.wait(every_s):
            collect(run, steps, keep=2)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        collect(run, steps, keep=2)


def collect(run: Path, steps: Collection[int], keep: int) -> None:
    """Links weights of checkpoints into ``snapshots/``, then removes all but ``keep`` checkpoints.

    Args:
        run: The run folder.
        steps: The snapshots that are wanted.
        keep: Number of checkpoints that stay, the newest.
    """
    for checkpoint in store.checkpoints(run):
        target = run / "snapshots" / checkpoint.name
        if store.step_of(checkpoint) in steps and not target.exists():
            _link(checkpoint, target)
    store.prune(run, keep)


def _link(checkpoint: Path, target: Path) -> None:
    """The student that is exported by default, and nothing else."""
    clean_temporaries(target.parent)
    temporary = temporary_path(target)
    temporary.mkdir(parents=True)
    averaged = has_average(checkpoint)
    stems = {stem(averaged, expert) for expert in range(MOST_EXPERTS)}
    for file in (file for each in stems for file in checkpoint.glob(f"{each}[-.]*")):
        try:
            os.link(file, temporary / file.name)
        except OSError:  # a file system without hard links
            shutil.copyfile(file, temporary / file.name)
    with suppress(OSError):  # another thread was faster
        rename_new(temporary, target)


class Bench:
    """Samples and measures with one seed's noise.

    Args:
        plan: The comparison.
        seed: The noise of a video depends on it and on the prompt's number.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.settings, self.job = plan.settings, plan.job
        self.captions = plan.held_out_captions
        self.prompts = plan.evaluation_prompts
        model = open_teacher(self.job.teacher)
        self.fps, self.suffix = model.fps, model.size_rules.suffix
        self._student: VideoSampler | None = None

    def wanted(self) -> tuple[list[str], list[int]]:
        """Prompts and seeds of a full measurement: one video each, then the groups' other ones."""
        base = 1_000_000 * (self.seed + 1)
        texts, seeds = list(self.prompts), [base + i for i in range(len(self.prompts))]
        for index in range(self.settings.groups):
            for copy in range(1, self.settings.copies):
                texts.append(self.prompts[index])
                seeds.append(base + 100_000 * copy + index)
        return texts, seeds

    def measured(self, videos: Videos, nfe: int, seconds: float) -> measuring.Measured:
        """Measures what ``wanted`` asked for."""
        count, others = len(self.prompts), self.settings.copies - 1
        rest = videos[count:]
        groups = [
            np.concatenate([videos[i : i + 1], rest[i * others : (i + 1) * others]])
            for i in range(self.settings.groups)
        ]
        start = time.monotonic()
        result = measuring.measure_videos(
            videos[:count], self.captions, self.fps, nfe=nfe, groups=groups, seconds=seconds
        )
        return measuring.replace_seconds(result, seconds + time.monotonic() - start)

    def student(self) -> VideoSampler:
        """The sampler of the few steps, with the teacher's weights until others are loaded."""
        if self._student is None:
            self._student = self.sampler(few_steps=True)
        return self._student

    def sampler(self, few_steps: bool) -> VideoSampler:
        """The teacher on its own steps with guidance, or on the student's without."""
        job, video = self.job, self.job.video
        model = open_teacher(job.teacher)
        size = (video.height, video.width, video.frames)
        _, frames, height, width = model.latent_shape(*size)
        return VideoSampler(
            model,
            job.steps if few_steps else teacher_solver(model, self.settings.solver),
            size,
            1.0 if few_steps else job.teacher.guidance_scale,
            model.negative_prompt_for(job.teacher.negative_prompt),
            batch=max(1, min(TEACHER_BATCH, _TOKENS_AT_ONCE // (frames * height * width))),
            device="cuda" if torch.cuda.is_available() else "cpu",
            dtype=torch_type(job.teacher.dtype),
            guidance_scale_2=None if few_steps else job.teacher.guidance_scale_2,
            images=self.plan.start_images,
            image_cache=job.data.embeddings,
        )

    def measure_run(self, label: str) -> None:
        """Measures every snapshot that is not measured yet: few videos, at the end all."""
        *curve, last = self.plan.snapshots()
        for step in curve:
            path = self.plan.measurement(label, self.seed, step, full=False)
            if path.is_file():
                continue
            start = time.monotonic()
            sampler = self._loaded(label, step)
            count = self.settings.curve_prompts
            texts, seeds = self.wanted()
            videos = sampler(texts[:count], seeds[:count])
            captions = None if self.captions is None else self.captions[:count]
            result = measuring.measure_videos(videos, captions, self.fps, nfe=sampler.nfe)
            measuring.save(measuring.replace_seconds(result, time.monotonic() - start), path)
        self.measure_snapshot(label, last)

    def measure_snapshot(self, label: str, step: int) -> None:
        """Measures a snapshot in full."""
        path = self.plan.measurement(label, self.seed, step)
        if path.is_file():
            return
        sampler = self._loaded(label, step)
        start = time.monotonic()
        videos = sampler(*self.wanted())
        result = self.measured(videos, sampler.nfe, time.monotonic() - start)
        if step == self.plan.snapshots()[-1]:
            self.show(label, videos)
        measuring.save(result, path)

    def measure_teacher(self, row: str) -> None:
        """Measures the teacher, whose videos are kept batch by batch, or its few steps."""
        sampler = self.sampler(few_steps=row != TEACHER)
        start = time.monotonic()
        if row == TEACHER:
            videos = self._teacher_videos(sampler)
        else:
            videos = sampler(*self.wanted())
        result = self.measured(videos, sampler.nfe, time.monotonic() - start)
        self.show(row, videos)
        measuring.save(result, self.plan.measurement(row, self.seed, 0))

    def _teacher_videos(self, sampler: VideoSampler) -> Videos:
        folder = teacher_folder(self.plan, self.seed)
        clean_temporaries(folder)
        texts, seeds = self.wanted()
        made: list[Videos] = []
        for index, start in enumerate(range(0, len(texts), TEACHER_BATCH)):
            path = folder / f"batch_{index:05d}.npz"
            if not path.is_file():
                these = slice(start, start + TEACHER_BATCH)
                videos = sampler(texts[these], seeds[these])
                with appearing(path, suffix=".npz") as temporary:
                    np.savez_compressed(temporary, videos=videos)
            with np.load(path, allow_pickle=False) as file:
                made.append(file["videos"])
        return np.concatenate(made)

    def _loaded(self, label: str, step: int) -> VideoSampler:
        sampler = self.student()
        folder = self.plan.snapshot(label, self.seed, step)
        for expert in range(len(sampler.transformers)):
            files = student_files(folder, has_average(folder), expert)
            sampler.load_weights(files, expert)
        return sampler

    def show(self, row: str, videos: Videos) -> None:
        """Writes the first prompts' videos, or images."""
        folder = self.plan.videos(row, self.seed)
        factor = max(1, _SHOWN_SIZE // min(videos.shape[2:4]))
        for index in range(self.settings.shown):
            large = videos[index].repeat(factor, axis=1).repeat(factor, axis=2)
            write_frames(large, folder / f"{index:02d}{self.suffix}", self.fps)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """A worker's life; the last line of its log is its error."""
    out, task = Path(arguments[0]), Task(**parse_json(arguments[1], RECORD))
    nproc = int(arguments[2]) if len(arguments) > 2 else 1
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    follow_parent()
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    try:
        work(out, task, nproc)
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        with suppress(OSError):  # the log may be on the disk that is full
            print(f"error: {escaped('; '.join(error.lines))}", file=sys.stderr)
        return 2
    except Exception as error:
        if is_full_disk(error):
            return NO_SPACE
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {escaped(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
