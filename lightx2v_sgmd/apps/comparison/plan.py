"""The plan of a comparison: a job for each trained row, seeds, measurements and files.

OUT/
comparison.json              what this folder compares
jobs/ROW.yaml                each row's job, complete; `distill` runs it alone
runs/ROW/seed_0/             a run folder; snapshots/ has the weights at every N iterations
teacher/seed_0/*.npz         the teacher's videos, made once
measured/ROW/seed_0/*.json   raw measurements, one file for a set of videos
videos/ROW/seed_0/*.mp4      the first prompts' videos
logs/*.log                   what the processes said
results.json, table.md, report.html, contact_sheet.png
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightx2v_sgmd.apps.sprites import motions, world
from lightx2v_sgmd.families.sources.model_folder import shipped_prompts
from lightx2v_sgmd.families.teacher import open_teacher
from lightx2v_sgmd.files.checkpoint import checkpoint_name
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.sampling.teacher_steps import TeacherSolver, solver_text, teacher_solver

TEACHER, UNDISTILLED = "teacher", "undistilled"
MOST_COUNT = 100_000
"""The most videos of a measurement, and the most snapshots of a run."""


@dataclass(frozen=True)
class Settings:
    """The amount of measuring.

    Attributes:
        prompts: Videos of a full measurement.
        curve_prompts: Videos of a snapshot's.
        every: Iterations between snapshots.
        groups: Prompts of which several videos are made, for the diversity.
        copies: The number of videos of each of them.
        shown: Prompts whose videos are kept.
        evaluation: The file of prompts that videos are made from; None stands for the bundled
            world's held-out captions.
        solver: The teacher's solver, ``unipc`` or ``euler``; None is that of its authors.
    """

    prompts: int = 200
    curve_prompts: int = 100
    every: int = 20
    groups: int = 24
    copies: int = 4
    shown: int = 8
    evaluation: str | None = None
    solver: TeacherSolver | None = None


@dataclass(frozen=True)
class Plan:
    """A comparison, checked.

    Attributes:
        out: The folder of the comparison.
        jobs: The trained rows' jobs by label, with the first seed.
        seeds: The seeds of every row.
        settings: The amount of measuring.
    """

    out: Path
    jobs: dict[str, Job]
    seeds: tuple[int, ...]
    settings: Settings

    @property
    def job(self) -> Job:
        """Any of the jobs, for what they share."""
        return next(iter(self.jobs.values()))

    @property
    def checkable(self) -> bool:
        """True if the captions are a sprite world's, whose claims can be checked in frames."""
        return checkable(self.job)

    @property
    def held_out_captions(self) -> list[world.Caption] | list[motions.MotionCaption] | None:
        """The held-out captions that videos are made from; None if they are other prompts."""
        from lightx2v_sgmd.apps.sprites import evaluate

        if self.settings.evaluation is not None:
            return None
        count = self.settings.prompts
        kind = world_of(self.job)
        if kind == "motions":
            return evaluate.held_out_motion_captions(count)
        return None if kind is None else evaluate.held_out_captions(count)

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row of the tables."""
        return (TEACHER, UNDISTILLED, *self.jobs)

    @property
    def evaluation_prompts(self) -> list[str]:
        """The prompts that videos are made from, none of which any row has trained on."""
        count, file = self.settings.prompts, self.settings.evaluation
        captions = self.held_out_captions
        if captions is not None:
            return [caption.text() for caption in captions]
        # Without a file, an earlier version made the comparison, on training prompts.
        return prompts_of(self.job.data.prompts if file is None else file)[:count]

    @property
    def makes(self) -> str:
        """The kind of the teacher's output: ``video`` or ``image``."""
        return "image" if open_teacher(self.job.teacher).size_rules.images else "video"

    @property
    def start_images(self) -> dict[str, Path]:
        """The images that videos start from, by evaluation prompt."""
        file, wanted = self.settings.evaluation, self.evaluation_prompts
        found = {} if file is None else images_of(file)
        return {prompt: found[prompt] for prompt in wanted if prompt in found}

    @property
    def on_captions(self) -> bool:
        """True if videos are made from a sprite world's held-out captions."""
        return self.settings.evaluation is None and self.checkable

    def about_prompts(self) -> str:
        """A sentence on the prompts that videos are made from."""
        if self.on_captions:
            return "The prompts are captions of the bundled world that training never saw."
        if self.settings.evaluation is None:
            return "The prompts are training prompts: an earlier version made this comparison."
        file = Path(self.settings.evaluation).name
        return f"The prompts are from {file}, and no row trained on any of them."

    def about_teacher(self) -> str:
        """A sentence on how the teacher's row is sampled."""
        teacher = self.job.teacher
        model = open_teacher(teacher)
        negative = model.negative_prompt_for(teacher.negative_prompt)
        guidance = " and ".join(
            f"{teacher.guidance_of(number):g}{f' ({expert.name})' if expert.name else ''}"
            for number, expert in enumerate(model.experts)
        )
        own = "its authors'" if negative == model.negative_prompt else "the job's"
        return (
            f"The teacher samples with {solver_text(teacher_solver(model, self.settings.solver))}, "
            f"guidance {guidance} and "
            f"{f'{own} negative prompt' if negative else 'no negative prompt'}."
        )

    def snapshots(self) -> list[int]:
        """The iterations after which weights are kept, the last one included."""
        last, every = self.job.train.iterations, self.settings.every
        return [*range(every, last, every), last]

    def job_file(self, label: str) -> Path:
        """The file of a row's job."""
        return self.out / "jobs" / f"{file_name(label)}.yaml"

    def run(self, label: str, seed: int) -> Path:
        """A run folder."""
        return self.out / "runs" / file_name(label) / f"seed_{seed}"

    def snapshot(self, label: str, seed: int, step: int) -> Path:
        """The folder of the weights after ``step`` iterations."""
        return self.run(label, seed) / "snapshots" / checkpoint_name(step)

    def measurement(self, label: str, seed: int, step: int, full: bool = True) -> Path:
        """A measurement's file; untrained rows have step 0."""
        kind = "full" if full else "curve"
        name = f"{kind}_{step:06d}.json"
        return self.out / "measured" / file_name(label) / f"seed_{seed}" / name

    def videos(self, label: str, seed: int) -> Path:
        """The folder of the videos that are shown."""
        return self.out / "videos" / file_name(label) / f"seed_{seed}"


def file_name(label: str) -> str:
    """A row's label as a file name."""
    return re.sub(r"[^\w.=+-]+", "_", label)


def checkable(job: Job) -> bool:
    """True if the prompts come with a model and a sprite world can measure each in frames."""
    return world_of(job) is not None


def world_of(job: Job) -> Literal["sprites", "motions"] | None:
    """The sprite world whose captions the job's prompts are, if they come with a model."""
    prompts = shipped_prompts(job.data.prompts)
    if prompts is None:
        return None
    if all(map(world.is_caption, prompts)):
        return "sprites"
    return "motions" if all(map(motions.is_motion_caption, prompts)) else None


def images_of(file: str) -> dict[str, Path]:
    """The image that each prompt of a file names, for those that name one; the first counts."""
    from lightx2v_sgmd.files.prompts import read_images, read_prompts

    found: dict[str, Path] = {}
    for prompt, image in zip(read_prompts(file), read_images(file), strict=False):
        if image is not None:
            found.setdefault(prompt, image)
    return found


def prompts_of(file: str) -> list[str]:
    """The prompts of a file, each once."""
    from lightx2v_sgmd.files.prompts import read_prompts

    return list(dict.fromkeys(read_prompts(file)))
