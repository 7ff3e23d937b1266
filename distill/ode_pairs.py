"""ODE pairs of a job's teacher: noises, and the latents that its sampler makes of them.

The methods ``adp`` and ``dmdx`` train on them (``data.latents``). Several machines can fill one
folder, each with its own part of the shards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from distill.data import load_prompts, prompts_digest
from distill.model_checks import teacher_sources
from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.files.latents import check_origin, shard_path, write_shard
from lightx2v_sgmd.files.tensors.dtypes import torch_type
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.job.schema import LATENTS, Data, Job
from lightx2v_sgmd.outputs import clean_temporaries, locked_file, refuse_overlap, resolved
from lightx2v_sgmd.sampling.sampler import VideoSampler, noise_for
from lightx2v_sgmd.sampling.teacher_steps import (
    TEACHER_STEPS,
    TeacherSolver,
    solver_text,
    teacher_solver,
)
from lightx2v_sgmd.schedule import MOST_STEPS
from lightx2v_sgmd.system.console import note, progress
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import shipped_model
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest

MOST_PAIRS: Final = 10_000_000
"""The most pairs of a folder."""


@dataclass(frozen=True)
class PairPlan:
    """The number of pairs that a folder gets, and the share of them that this machine makes.

    Attributes:
        count: Pairs of the whole folder; with fewer prompts than pairs, prompts repeat.
        steps: Steps of the teacher's sampler.
        solver: The solver of the teacher; None is the one that the teacher's authors use.
        shift: The flow shift of the teacher; None is the one that the teacher's authors use.
        shard: Pairs in one file.
        part: Number of this machine's part, from 1.
        parts: Number of machines that share the work.
    """

    count: int = 1024
    steps: int = TEACHER_STEPS
    solver: TeacherSolver | None = None
    shift: float | None = None
    shard: int = 64
    part: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        for name, most in (("count", MOST_PAIRS), ("steps", MOST_STEPS)):
            if getattr(self, name) > most:
                raise UserError(f"--{name}: {getattr(self, name)} is more than {most}; use fewer")

    def shards(self) -> list[tuple[int, range]]:
        """This machine's shards: the number of each, and the numbers of its pairs."""
        starts = range(0, self.count, self.shard)
        return [
            (index, range(self.count)[start : start + self.shard])
            for index, start in enumerate(starts)
            if index % self.parts == self.part - 1
        ]


def parse_part(text: str) -> tuple[int, int]:
    """The two numbers of ``K/N``.

    Raises:
        UserError: the text is something else, or K is not between 1 and N.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(
            f"--part: {text!r} is not K/N with K from 1 to N; use 2/8 on the second of 8 machines"
        )
    return part, parts


def collect_pairs(
    job: Job, out: Path, plan: PairPlan, prompts: str | None = None, quiet: bool = False
) -> Path:
    """Writes the shards of pairs that the folder lacks; existing shards are never replaced.

    Args:
        job: Names the teacher, its guidance, the size of the videos and the prompts.
        out: The folder of pairs.
        plan: The number of pairs, and this machine's share.
        prompts: A prompt file, or a shipped model's name, instead of the job's prompts.
        quiet: Show no progress.

    Returns:
        The folder.

    Raises:
        UserError: the prompts or the teacher cannot be read, or the folder holds pairs that were
            made with other settings.
    """
    if prompts is not None:
        named = shipped_model(prompts) is not None
        job = replace(job, data=Data(prompts=prompts if named else str(Path(prompts).absolute())))
    if job.data.prompts == LATENTS:
        raise UserError("--prompts: the job's prompts are those of the pairs; give a file")
    folder = resolved(out)
    refuse_overlap(folder, teacher_sources(job))
    check_writable(out, folder=True)
    # Several machines may fill one folder, so each part has a lock of its own.
    part = folder / f"part_{plan.part}_of_{plan.parts}"
    with locked_file(part, "collect-pairs", quiet):
        clean_temporaries(folder)
        _collect(job, load_prompts(job), folder, plan, quiet)
    return out


def _collect(job: Job, prompts: Sequence[str], out: Path, plan: PairPlan, quiet: bool) -> None:
    model = open_teacher(job.teacher)
    job = with_defaults(job, model)
    schedule = teacher_solver(model, plan.solver, plan.shift, plan.steps)
    negative_prompt = model.negative_prompt_for(job.teacher.negative_prompt)
    size = (job.video.height, job.video.width, job.video.frames)
    sampler = VideoSampler(
        model,
        schedule,
        size,
        job.teacher.guidance_scale,
        negative_prompt,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=torch_type(job.teacher.dtype),
        guidance_scale_2=job.teacher.guidance_scale_2,
    )
    second = job.teacher.guidance_scale_2
    origin = {
        "teacher": job.teacher.path,
        "guidance_scale": job.teacher.guidance_scale,
        **({} if second is None else {"guidance_scale_2": second}),
        "negative_prompt": negative_prompt,
        "schedule": schedule.to_dict(),
        "count": plan.count,
        "shard": plan.shard,
        "seed": job.train.seed,
        "weights": weights_digest(model, "transformer"),
        "prompts": prompts_digest(prompts),
    }
    check_origin(out, origin)
    scale = job.teacher.guidance_scale
    note(f"the teacher samples with {solver_text(schedule)}, guidance {scale:g}", quiet)
    shards = plan.shards()
    missing = [(index, numbers) for index, numbers in shards if not shard_path(out, index).exists()]
    total = sum(len(numbers) for _, numbers in shards)
    done = total - sum(len(numbers) for _, numbers in missing)
    with progress(total, "sampling pairs", quiet, done=done) as bar:
        for index, numbers in missing:
            texts = [prompts[i % len(prompts)] for i in numbers]
            seeds = [job.train.seed * 1_000_003 + i for i in numbers]
            noise = torch.cat([noise_for(sampler.model, seed, sampler.shape) for seed in seeds])
            x0 = sampler.latents(texts, noise)
            write_shard(out, index, x0.cpu(), noise, texts, origin)
            bar.advance(len(numbers))
