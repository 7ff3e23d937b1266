"""Runs a job in this process, which may be one of several, and writes its run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from distill.building import (
    StartingPoint,
    build_trainer,
    check_embeddings,
    check_images,
    open_latents,
)
from distill.counting import PassCounter
from distill.data import load_prompts
from distill.loss_terms import NotFiniteError
from distill.model_checks import check_against_model
from distill.observed import ReportProgress, StopOnRequest
from distill.planning.host_memory import check_host_memory
from distill.running.failures import save_failed_state
from distill.running.recorders import Recorder, environment, metrics_line
from distill.running.reports import give_up
from distill.running.resuming import check_same_run, choose_checkpoint, trainer_state
from distill.running.run_folder import check_output, check_own, run_lock, write_about
from distill.running.samples import Sampled, SampleVideos
from distill.running.saving import Saver, check_space, checkpoint_parts
from distill.running.signals import stop_on_signal
from distill.running.trackers import TENSORBOARD, Tracker, check_trackers, open_trackers
from distill.running.warnings import RunWarnings
from distill.trainer import Trainer
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.teacher import (
    check_same_encoders,
    open_own_models,
    open_teacher,
    with_defaults,
)
from lightx2v_sgmd.files.latents import LatentFolder
from lightx2v_sgmd.files.prompts import note_unread
from lightx2v_sgmd.job.schema import Job, Train
from lightx2v_sgmd.outputs import OutputLock
from lightx2v_sgmd.parallel import (
    TEACHER,
    Ranks,
    Strategy,
    Watch,
    check_offload,
    connect,
    disconnect,
    training_device,
)
from lightx2v_sgmd.parallel.sequence import check_degree
from lightx2v_sgmd.system.console import note, progress
from lightx2v_sgmd.system.errors import UserError, named_line
from lightx2v_sgmd.system.optional_packages import distribution, reinstall, why_unusable
from lightx2v_sgmd.system.torch_faults import slow_conv3d
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest


def run(job: Job, resume: str, quiet: bool) -> Path:
    """Trains to the job's last iteration.

    Args:
        job: The job to train.
        resume: ``auto``, ``never`` or a path; see ``saving.choose_checkpoint``.
        quiet: Show nothing.

    Returns:
        The run folder.

    Raises:
        UserError: the job or this machine has a problem.
        KeyboardInterrupt: the run was asked to stop, and has saved.
    """
    # Checks that need no weights and no other process come first.
    check_output(job, resume)
    check_trackers(job.output.trackers)
    model = open_teacher(job.teacher)
    job = with_defaults(job, model)
    check_against_model(job, model)
    prompts = load_prompts(job)
    check_images(job, model)
    latents = open_latents(job, model)
    timeout = job.parallel.timeout_minutes
    check_offload(job.parallel, training_device())
    ranks = connect(job.parallel.strategy, training_device(), timeout)
    try:
        degree = job.parallel.sequence
        own = open_own_models(job, model)
        for each in (model, *own.values()):
            check_degree(degree, each.num_heads, each.path, ranks.size)
        ranks = replace(ranks, share=degree)
        quiet = quiet or not ranks.first
        note_unread(job.data.prompts, quiet)
        with run_lock(job.output.dir, ranks, quiet) as lock:
            done = _run(job, model, own, prompts, latents, ranks, resume, quiet, lock)
    except UserError:
        disconnect(job.parallel.strategy)  # all ranks raise it
        raise
    if done < job.train.iterations:
        note(f"stopped after step {done}; run the same command again to resume", quiet)
        raise KeyboardInterrupt
    return job.output.dir


def _run(
    job: Job,
    model: Model,
    own: Mapping[str, Model],
    prompts: list[str],
    latents: LatentFolder | None,
    ranks: Ranks,
    resume: str,
    quiet: bool,
    lock: OutputLock | None,
) -> int:
    """Runs in a folder that this run has locked; returns the number of iterations done."""
    timeout = job.parallel.timeout_minutes
    ranks.once(lambda: check_host_memory(job, model, ranks.device, ranks.size))
    digests = ranks.once(lambda: _digests(model, own))
    state = trainer_state(job, prompts, ranks, digests)
    start = ranks.once(lambda: _prepare(job, model, prompts, state, ranks, resume, quiet))
    if start.step >= job.train.iterations:
        note(f"{job.output.dir} already has all {start.step} iterations", quiet)
        disconnect(job.parallel.strategy)
        return start.step
    trackers: list[Tracker] = []  # only the first rank has any
    ranks.once(lambda: trackers.extend(open_trackers(job, quiet)))
    watch = Watch(ranks, timeout, partial(give_up, job.output.dir, ranks.rank))
    with _watching(watch), _closing(trackers):
        with watch.patient("loading"):
            trainer = build_trainer(job, model, prompts, latents, ranks, start, quiet)
        watch.follow(trainer.strategy.networks)
        saver = Saver(job, trainer.strategy, state, lock)
        try:
            done = _train(job, model, trainer, saver, start, quiet, watch, trackers)
        except NotFiniteError as error:
            with watch.patient("saving the failed state"):
                raise save_failed_state(error, saver, prompts) from error
    trainer.strategy.close()
    return done


def _digests(teacher: Model, own: Mapping[str, Model]) -> dict[str, str]:
    """Names the weights that the run starts from, by role, after checks that need these files."""
    for role, model in own.items():
        check_same_encoders(role, model, teacher)
    starts = {TEACHER: teacher, **own}
    return {role: _digest(role, model) for role, model in starts.items()}


def _digest(role: str, model: Model) -> str:
    try:
        return weights_digest(model, "transformer")
    except UserError as error:
        raise UserError(f"{role}.path: {error}") from error


@contextmanager
def _closing(trackers: list[Tracker]) -> Iterator[None]:
    """Ends the run in all trackers when the block ends, however it does."""
    try:
        yield
    finally:
        for tracker in trackers:
            tracker.close()


@contextmanager
def _watching(watch: Watch) -> Iterator[None]:
    """Inside, the others learn of a failure of this rank, and a failure of theirs is named."""
    try:
        yield
    except UserError:  # all ranks raise it
        raise
    except Exception as error:
        # gloo raises plain RuntimeErrors, whose text begins with the name of its source file.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise watch.explain(error) from error
        watch.leave(named_line(error))
        raise
    except KeyboardInterrupt:
        watch.leave("interrupted")
        raise
    finally:
        watch.close()


def _prepare(
    job: Job,
    model: Model,
    prompts: list[str],
    state: dict[str, Any],
    ranks: Ranks,
    resume: str,
    quiet: bool,
) -> StartingPoint:
    """Chooses the starting point and makes the run folder, before anything is loaded."""
    folder = job.output.dir
    check_own(folder)
    checkpoint = choose_checkpoint(resume, folder, partial(note, quiet=quiet))
    start = StartingPoint()
    if checkpoint is not None:
        start = check_same_run(checkpoint, job, state)
        note(f"resuming from {checkpoint}", quiet)
    check_space(folder, sum(checkpoint_parts(job, model)))
    if start.step < job.train.iterations:
        check_embeddings(job, model, prompts)
    write_about(folder, job, environment(job.parallel.strategy, ranks), quiet)
    return start


def _train(
    job: Job,
    model: Model,
    trainer: Trainer,
    saver: Saver,
    start: StartingPoint,
    quiet: bool,
    watch: Watch,
    trackers: list[Tracker],
) -> int:
    """Runs iterations, with logging and saving after each; returns how many are done."""
    strategy: Strategy = trainer.strategy  # without listeners: samples are not an iteration
    train, ranks = job.train, strategy.ranks
    counter = PassCounter(strategy.networks, train.micro_batch * train.accumulation)
    recorders: list[Recorder] = []  # only the first rank has one
    done = saved = start.step
    board = TENSORBOARD in job.output.trackers
    warnings = RunWarnings(job, quiet)
    opened = partial(Recorder, job.output.dir, start.step, quiet, trackers, board, warnings)
    ranks.once(lambda: recorders.append(opened()))
    sampling, measuring = ranks.once(partial(_can_sample, quiet))
    if (fault := slow_conv3d(ranks.device)) is not None:
        note(fault, quiet)
    with (
        progress(train.iterations, "distilling", quiet, done=done) as bar,
        stop_on_signal(quiet) as stop,
    ):
        before = saved_at = time.monotonic()
        samples = SampleVideos(job, model, strategy, trainer.batches, stop, measuring, quiet)
        trainer.listen(ReportProgress(trainer.where, watch.tick), StopOnRequest(ranks, stop))
        for result in trainer.run(done, start.partial_iteration):
            done, now = result.step, time.monotonic()
            line = metrics_line(result, now - before, counter.take(), ranks.device)
            last = done == train.iterations
            samples_due = sampling and (last or done % train.sample_every == 0)
            overdue = _overdue(train, now - saved_at)
            late = ranks.once(partial(_record, recorders, line, overdue, samples_due))
            bar.advance(1, "  ".join(f"{k} {v:.4g}" for k, v in result.losses.items()))
            if last or late or done % train.checkpoint_every == 0:
                with watch.patient(f"saving the checkpoint of step {done}"):
                    saver.save(done)
                saved, saved_at = done, time.monotonic()
            if samples_due:
                with watch.patient(f"sampling videos of step {done}"):
                    sampled = samples.make(done)
                    ranks.once(partial(_record_samples, recorders, done, sampled))
            counter.take()  # sampling is not training
            before = time.monotonic()
        if done > saved or trainer.partial_iteration is not None:  # asked to stop
            with watch.patient(f"saving the checkpoint of step {done}"):
                saver.save(done, trainer.partial_iteration)
    for recorder in recorders:
        recorder.close()
    return done


def _can_sample(quiet: bool) -> tuple[bool, bool]:
    """True if sample videos can be encoded, and if they can be measured; else says why not."""
    found = []
    for module, lacks in (("imageio_ffmpeg", "no sample videos"), ("cv2", "samples not measured")):
        problem = why_unusable(module)
        if problem is not None:
            name, remedy = distribution(module), reinstall(module)
            note(f"{lacks}: the package {name} {problem}; install it again ({remedy})", quiet)
        found.append(problem is None)
    return found[0], found[1]


def _overdue(train: Train, seconds: float) -> bool:
    """True if a checkpoint is due by this rank's clock; the first rank decides for all."""
    return train.checkpoint_minutes is not None and seconds >= 60 * train.checkpoint_minutes


def _record(
    recorders: list[Recorder], line: dict[str, Any], late: bool, more: bool = False
) -> bool:
    for recorder in recorders:
        recorder.record(line, more)
    return late


def _record_samples(recorders: list[Recorder], step: int, sampled: Sampled | None) -> None:
    if sampled is not None:
        for recorder in recorders:
            recorder.extend(step, sampled.line())
            recorder.add_videos(step, sampled.gifs, sampled.files)
