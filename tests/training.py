"""Small training jobs on a random tiny teacher, and reading back what they left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill import distill
from distill.building import StartingPoint, build_trainer, wanted_images
from distill.counting import COUNTS
from distill.data import Batches, load_prompts
from distill.predictions import student_sample
from distill.trainer import Trainer
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.teacher import (
    open_own_models,
    open_teacher,
    with_defaults,
    with_known_defaults,
)
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.files.student_weights import stem, student_files
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs.writer import write_text
from lightx2v_sgmd.parallel import Ranks, StrategySettings, open_strategy
from lightx2v_sgmd.text.encoding import encode_prompts
from lightx2v_sgmd.text.images import EmbeddingsWithImages, encode_images
from tests.parallel.ranks import run_ranks

PROMPTS = ["a red circle moving left", "a blue square moving right slowly", "circle", "a and a"]
BASE = """
teacher: {{path: {teacher}, guidance_scale: 8.0, negative_prompt: ""}}
student: {{optimizer: {{lr: 1.0e-4}}}}
fake_score: {{optimizer: {{lr: 1.0e-4}}}}
data: {{prompts: prompts.txt}}
video: {{height: 32, width: 32, num_frames: 5}}
train: {{iterations: 5, micro_batch: 2, ema: 0.9, warmup: 2, checkpoint_every: 100,
         sample_every: 100, teacher_sample_steps: 0}}
output: {{dir: {run}}}
"""


def make_job(teacher: Path, folder: Path, *settings: str) -> Job:
    """A job whose run folder is ``folder/run``; ``settings`` are as for ``--set``.

    What the settings leave out is as the teacher's family has it.
    """
    return with_known_defaults(load_job(job_file(teacher, folder), settings), {})[0]


def job_file(teacher: Path, folder: Path) -> Path:
    """Writes a job and its prompts. Several ranks may do so at once: each file appears whole."""
    write_text(folder / "prompts.txt", "\n".join(PROMPTS))
    write_text(folder / "job.yaml", BASE.format(teacher=teacher, run=folder / "run"))
    return folder / "job.yaml"


def make_trainer(
    job: Job, ranks: Ranks | None = None, strategy: str = "local", model: Model | None = None
) -> Trainer:
    ranks = ranks or Ranks()
    model = model or open_teacher(job.teacher)
    real = replace(ranks, device=torch.device("cpu")) if ranks.device.type == "meta" else ranks
    *rows, negative = encode_prompts(
        model,
        [*load_prompts(job), model.negative_prompt_for(job.teacher.negative_prompt)],
        real,
        torch.float32,
        None,
    )
    wanted = wanted_images(job, model)
    embeddings: Sequence[Embedding] = rows
    if wanted:
        embeddings = EmbeddingsWithImages(rows, encode_images(model, wanted, ranks, None))
    shape = model.latent_shape(job.video.height, job.video.width, job.video.frames)
    folded = ranks.device.type == "cpu"  # as in production: kernels of a GPU know no mask
    own = open_own_models(job, model)
    settings = StrategySettings.of(job)
    networks = open_strategy(strategy, model, settings, ranks, fold_text=folded, own=own)
    return Trainer(
        job,
        networks,
        Batches(
            job,
            embeddings,
            negative,
            shape,
            ranks,
            None,
            model.interpolant,
            model.conditioning,
            experts=model.experts,
        ),
    )


def trained_latents(job: Job, step: int, noise: Tensor) -> Tensor:
    """The latents that training's rollout makes of the first prompt, by the averaged student.

    Args:
        job: A job that has run for ``step`` iterations.
        step: Number of iterations.
        noise: ``[1, C, T, h, w]``.
    """
    start = StartingPoint(step, find_checkpoint(job.output.dir))
    model = open_teacher(job.teacher)
    job = with_defaults(job, model)
    trainer = build_trainer(job, model, load_prompts(job), None, Ranks(), start, quiet=True)
    with torch.no_grad(), trainer.strategy.averaged_student():
        conditioning, _ = trainer.batches.conditioning([0])
        batch = trainer.batches.micro_batch(0, 0)
        batch = replace(batch, noise=noise, conditioning=conditioning)
        return student_sample(trainer.strategy, batch, job.steps, len(job.steps) - 1)[0]


def train(job: Job, ranks: int = 1) -> Path:
    """Runs a job; on ``ranks`` forked processes, which start faster than ``--nproc``'s do."""
    if job.parallel.strategy == "local":
        return _distill(job)
    return Path(run_ranks(ranks, _distill, job))


def _distill(job: Job) -> Path:
    return distill(job, quiet=True)


def read_trace(run: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without what may differ between equal runs."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        for key in ("seconds", "cpu_seconds", "peak_memory_gib", *COUNTS, "forward_equivalents"):
            del row[key]
        for key in ("samples", "teacher_samples", "sampling_seconds"):
            row.pop(key, None)
    return rows


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    """Student, average and fake score of a checkpoint, flat, by role and name."""
    found = {}
    experts = range(2 if list(checkpoint.glob(f"{stem(False, 1)}.*")) else 1)
    for averaged, expert in product((False, True), experts):
        role = stem(averaged, expert)
        for part in student_files(checkpoint, averaged, expert):
            for name, value in load_file(part).items():
                found[f"{role}/{name}"] = value.flatten()
    for file in sorted((checkpoint / "state").glob("fake_score*.*.safetensors")):
        role = file.name.partition(".")[0]
        for name, value in load_file(file).items():
            if name.endswith("/master"):
                key = f"{role}/{name}"
                found[key] = torch.cat([found.get(key, torch.zeros(0)), value])
    return found


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Two runs left equal traces and, in their newest checkpoints, the same bits."""
    assert read_trace(ours) == read_trace(theirs)
    found, expected = (weights_of(find_checkpoint(run)) for run in (ours, theirs))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


needs_deepspeed = pytest.mark.skipif(
    shutil.which("c++") is None, reason="DeepSpeed compiles an op for CPUs"
)
