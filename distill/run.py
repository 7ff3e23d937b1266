"""One run in this process, which may be one of several: set up, train, leave a run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from distill.callbacks import (
    Recorder,
    environment,
    metrics_line,
    stop_on_signal,
    write_samples,
)
from distill.counting import PassCounter
from distill.data import Batches, load_prompts
from distill.embeddings import encode_prompts, longest
from distill.pixels import PixelFeatures
from distill.saving import (
    Saver,
    check_same_run,
    check_space,
    checkpoint_bytes,
    choose_checkpoint,
    trainer_state,
)
from distill.trainer import Iteration, Trainer, pretraining, updates_done
from lightx2v_sgmd.checkpoint import disk_problem
from lightx2v_sgmd.console import note, progress
from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.job import Job, check_against_model
from lightx2v_sgmd.latents import LatentFolder
from lightx2v_sgmd.methods import PretrainingMethod
from lightx2v_sgmd.models.wan import WanModel, open_wan
from lightx2v_sgmd.parallel import (
    Ranks,
    Settings,
    Strategy,
    connect,
    disconnect,
    open_strategy,
    training_device,
)
from lightx2v_sgmd.parallel.sequence import check_degree
from lightx2v_sgmd.video import check_writable


def run(job: Job, resume: str, quiet: bool) -> Path:
    """Trains to the job's last iteration.

    Args:
        job: What to train.
        resume: ``auto``, ``never`` or a path; see ``saving.choose_checkpoint``.
        quiet: Show nothing.

    Returns:
        The run folder.

    Raises:
        UserError: something in the job or on this machine is in the way.
        KeyboardInterrupt: it was asked to stop, and has saved.
    """
    # First what needs no weights and no other process.
    model = open_wan(job.teacher.path, job.teacher.base)
    check_against_model(job, model)
    prompts = load_prompts(job)
    latents = _latents(job, model)
    ranks = connect(job.parallel.strategy, training_device())
    try:
        degree = job.parallel.sequence
        check_degree(degree, model.num_heads, job.teacher.path, ranks.size)
        ranks = replace(ranks, share=degree)
        quiet = quiet or not ranks.first
        start = ranks.once(lambda: _prepare(job, model, prompts, ranks, resume, quiet))
        if start.step >= job.train.iterations:
            note(f"{job.output.dir} has all {start.step} iterations already", quiet)
            return job.output.dir
        rows = _embeddings(job, model, prompts, ranks, quiet)
        fold_text = _worth_folding(model, rows, ranks)
        strategy = open_strategy(job.parallel.strategy, model, Settings.of(job), ranks, fold_text)
        if start.checkpoint is not None:
            strategy.load(start.checkpoint, updates_done(job.method, start.step))
        video = job.video
        shape = model.latent_shape(video.height, video.width, video.num_frames)
        batches = Batches(job, rows[:-1], rows[-1], shape, ranks, latents)
        saver = Saver(job, strategy, trainer_state(job, prompts, ranks))
        trainer = Trainer(job, strategy, batches, _pixels(job, model, ranks))
        last = _train(job, model, trainer, saver, start.step, quiet)
        strategy.close()
    except UserError:
        disconnect(job.parallel.strategy)  # all ranks have it
        raise
    if last.step < job.train.iterations:
        note(f"stopped after step {last.step}; the same command goes on from there", quiet)
        raise KeyboardInterrupt
    return job.output.dir


@dataclass(frozen=True)
class Start:
    """Where a run begins: after ``step`` iterations, from ``checkpoint`` if there are any."""

    step: int = 0
    checkpoint: Path | None = None


def _prepare(
    job: Job, model: WanModel, prompts: list[str], ranks: Ranks, resume: str, quiet: bool
) -> Start:
    """Decides where to begin and makes the run folder, before anything is loaded."""
    folder = job.output.dir
    check_writable(folder, folder=True)
    chosen = choose_checkpoint(resume, folder, partial(note, quiet=quiet))
    step = 0
    if chosen is not None:
        step = check_same_run(chosen, job, trainer_state(job, prompts, ranks))
        note(f"going on from {chosen}", quiet)
    check_space(folder, checkpoint_bytes(job, model))
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "job.yaml").write_text(job.to_yaml(), encoding="utf-8")
        seen = json.dumps(environment(job.parallel.strategy, ranks), indent=2)
        (folder / "environment.json").write_text(seen + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(disk_problem(error, folder)) from error
    return Start(step, chosen)


def _latents(job: Job, model: WanModel) -> LatentFolder | None:
    """The latents that the method reads, if it does.

    Raises:
        UserError: they are of another size than the job's videos, or no pairs.
    """
    wanted = getattr(job.method, "reads_latents", None)
    if wanted is None or job.data.latents is None:
        return None
    latents = LatentFolder(job.data.latents)
    video = job.video
    shape = model.latent_shape(video.height, video.width, video.num_frames)
    if tuple(latents.shape) != shape:
        raise UserError(
            f"data.latents: {latents.folder} holds latents of shape {tuple(latents.shape)}, the "
            f"job's videos have {shape}; set video.* to what they were made with"
        )
    if wanted == "pairs" and not latents.has_noise:
        raise UserError(
            f"data.latents: {latents.folder} holds encoded videos, {job.method.name} needs ODE "
            "pairs; make them with python -m tools.collect_ode_pairs"
        )
    return latents


def _pixels(job: Job, model: WanModel, ranks: Ranks) -> PixelFeatures | None:
    """The pixel discriminator's backbone, if the method has one."""
    if not pretraining(job.method):
        return None
    method = cast(PretrainingMethod, job.method)
    if not method.pixel_weight or method.vision_encoder is None:
        return None
    return PixelFeatures(model, method.vision_encoder, ranks.device)


def _embeddings(
    job: Job, model: WanModel, prompts: list[str], ranks: Ranks, quiet: bool
) -> Sequence[Tensor]:
    """The prompts' embeddings and, last, the negative prompt's."""
    dtype = getattr(torch, job.teacher.dtype)
    wanted = [*prompts, job.teacher.negative_prompt]
    return encode_prompts(model, wanted, ranks, dtype, job.data.embeddings, quiet)


def _worth_folding(model: WanModel, rows: Sequence[Tensor], ranks: Ranks) -> bool:
    """On a CPU, if the network is wide enough to carry the padding weights (see ``wan``)."""
    width = model.num_heads * int(model.transformer_config["attention_head_dim"])
    return ranks.device.type == "cpu" and longest(rows) + 1 <= width


def _train(
    job: Job, model: WanModel, trainer: Trainer, saver: Saver, done: int, quiet: bool
) -> Iteration:
    """Runs iterations, with what happens after each; returns the last."""
    strategy: Strategy = trainer.strategy
    train, device = job.train, strategy.ranks.device
    counter = PassCounter(strategy.networks, train.micro_batch * train.accumulation)
    recorders: list[Recorder] = []  # the first rank's; the others have none
    strategy.ranks.once(lambda: recorders.append(Recorder(job.output.dir, done)))
    result = Iteration(done, 0)
    with (
        progress(train.iterations, "distilling", quiet, done=done) as bar,
        stop_on_signal(quiet) as stop,
    ):
        before = time.monotonic()
        for result in trainer.run(done, stop):
            line = metrics_line(result, time.monotonic() - before, counter.take(), device)
            strategy.ranks.once(partial(_record, recorders, line))
            bar.advance(1, "  ".join(f"{k} {v:.4g}" for k, v in result.losses.items()))
            last = result.stop or result.step == train.iterations
            if last or result.step % train.checkpoint_every == 0:
                saver.save(result.step)
            if result.step == train.iterations or result.step % train.sample_every == 0:
                write_samples(job, model, strategy, trainer.batches, result.step)
            counter.take()  # sampling is not training
            before = time.monotonic()
    for recorder in recorders:
        recorder.close()
    return result


def _record(recorders: list[Recorder], line: dict[str, Any]) -> None:
    for recorder in recorders:
        recorder.record(line)
