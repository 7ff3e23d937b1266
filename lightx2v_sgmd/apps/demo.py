"""The demo: distil the bundled teacher, export, generate, measure, report. One command.

It is a user of the applications like any other: everything it does, a user can do with the other
commands on a model of their own.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.apps.sprites.evaluate import (
    TEACHER_STEPS,
    Row,
    TeacherSampler,
    Videos,
    evaluate,
    gap_closed,
    held_out_captions,
    summarise,
)
from lightx2v_sgmd.families.opening import bundled_teacher
from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.files.run_files import METRICS
from lightx2v_sgmd.files.video import check_writable, contact_sheet, write_video
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import WrittenFiles, locked_folder, resolved
from lightx2v_sgmd.sampling.teacher_steps import Solver, teacher_solver
from lightx2v_sgmd.system.console import duration, note, progress
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import required
from lightx2v_sgmd.system.resources import config_path
from lightx2v_sgmd.untrusted.json_text import read_log

SHOWN = 12
"""Prompts whose videos are kept and shown."""
ROWS: Final = ("teacher", "undistilled", "student")
"""The rows of the table, and the names of the videos that are compared."""


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo.

    Attributes:
        out: The folder.
        metrics: The content of ``metrics.json``.
    """

    out: Path
    metrics: dict[str, Any]


def run_demo(
    out: Path = Path("demo"),
    seed: int = 0,
    quiet: bool = False,
    prompts: int = 400,
    overrides: Sequence[str] = (),
) -> DemoResult:
    """Distils, exports, generates, measures and reports.

    Interrupted, it goes on from the last checkpoint when it is started again.

    Args:
        out: The folder for everything.
        seed: Random seed of training and generation.
        quiet: No progress.
        prompts: Held-out captions to measure on.
        overrides: Changes to the shipped job, as for ``distill --set``.
    """
    start = time.monotonic()
    out = Path(out)
    if not (bundled_teacher() / "model_index.json").is_file():
        raise UserError(f"demo: the bundled teacher is missing from {bundled_teacher()}; reinstall")
    required("imageio_ffmpeg")
    check_writable(out, folder=True)
    with locked_folder(resolved(out), "demo", quiet, ["videos"]):
        return _run_demo(out, seed, quiet, prompts, overrides, start)


def _run_demo(
    out: Path, seed: int, quiet: bool, prompts: int, overrides: Sequence[str], start: float
) -> DemoResult:
    from distill import distill
    from weights import export
    from weights.publishing import replaceable

    written = WrittenFiles(out)
    captions = held_out_captions(prompts)
    names = [_video_name(i, row, caption) for row in ROWS for i, caption in _shown(captions)]
    written.check(["report.html", "contact_sheet.png", "metrics.json", *names])
    replaceable(out / "student", overwrite=True)
    settings = [f"output.dir={json.dumps(str(out / 'run'))}", f"train.seed={seed}", *overrides]
    job = load_job(config_path("sprites_sgmd.yaml"), settings)
    job = with_defaults(job, open_teacher(job.teacher))
    _announce(job, prompts, quiet)

    note("1/4  distilling the teacher into a 4-step student", quiet)
    run = distill(job, quiet=quiet)
    trace = _read_trace(run)
    waited_s = time.monotonic() - start

    note("2/4  exporting the student", quiet)
    student = export(run, "diffusers", out / "student", overwrite=True, quiet=quiet)

    note("3/4  generating and measuring", quiet)
    rows = _measure(job, student, captions, seed, quiet)

    note("4/4  writing videos and the report", quiet)
    metrics: dict[str, Any] = {name: summarise(row, rows["teacher"]) for name, row in rows.items()}
    metrics["gap_closed"] = gap_closed(metrics)
    distill_s = sum(line["seconds"] for line in trace)
    # Iterations that an interrupted run had already trained count, too.
    rest_s = time.monotonic() - start - waited_s
    metrics["seconds"] = {
        "distill": round(distill_s, 1),
        "total": round(max(distill_s, waited_s) + rest_s, 1),
    }
    metrics["seed"] = seed
    _write_results(written, rows, captions, metrics, trace, job)
    _say_what_was_made(out, metrics, quiet)
    return DemoResult(out, metrics)


def _announce(job: Job, prompts: int, quiet: bool) -> None:
    """Says how long it will take, from the speed of this machine, before it takes it."""
    if quiet:
        return
    import torch

    from lightx2v_sgmd.families.conditioning import Conditioning

    model = open_teacher(job.teacher)
    network = model.load_transformer().eval()
    model.fold_text_padding(network)
    batch = 16
    shape = model.latent_shape(job.video.height, job.video.width, job.video.frames)
    x_t, time_t = torch.zeros(batch, *shape), torch.full((batch,), 0.5)
    text = Conditioning({"text": torch.zeros(batch, 12, model.text_dim)})
    # The fastest counts: the first warms up, and where other work takes the cores, threads that
    # wait for each other are slower than one.
    forward_s, threads = math.inf, torch.get_num_threads()
    with torch.no_grad():
        for count in (threads,) * 5 + (1,) * 3:
            torch.set_num_threads(count)
            before = time.monotonic()
            model.predict(network, x_t, time_t, text)
            forward_s = min(forward_s, time.monotonic() - before)
    torch.set_num_threads(threads)
    # 13.5 forwards an iteration; 100 + 4 + 4 to sample a prompt's videos, and a fifth for the
    # VAE and the measuring, which were timed beside them.
    videos = job.train.iterations * job.train.accumulation * job.train.micro_batch
    training_s = FORWARDS_PER_ITERATION * videos / batch * forward_s
    measuring_s = 1.2 * (2 * TEACHER_STEPS + 8) * prompts / batch * forward_s
    note(
        f"This trains for about {duration(training_s)} and measures for about "
        f"{duration(measuring_s)} on this machine. Ctrl-C stops it; run it again to resume.",
    )


FORWARDS_PER_ITERATION = 13.5
"""Cost of one SGMD iteration in one process, in forwards: student 2.5 + 3, teacher 2, fake 6."""


REPORTED: Final = ("step", "seconds", "fisher", "nr", "rc", "grad_norm")
"""The values of each iteration that the report shows."""


def _read_trace(run: Path) -> list[dict[str, Any]]:
    return read_log(run / METRICS, REPORTED)


def _measure(
    job: Job, student_folder: Path, captions: Sequence[world.Caption], seed: int, quiet: bool
) -> dict[str, Row]:
    """Samples and measures the three rows on the same prompts and seeds."""
    from infer import load_student

    model = open_teacher(job.teacher)
    student = load_student(student_folder)
    first_seed = 1_000_000 * (seed + 1)
    seeds = list(range(first_seed, first_seed + len(captions)))
    rows: dict[str, Row] = {}
    guidance = job.teacher.guidance_scale
    evaluations = len(captions) * (2 * TEACHER_STEPS + 2 * len(job.steps))
    with progress(evaluations, "sampling", quiet) as bar:

        def sample_teacher(schedule: Solver, scale: float) -> Row:
            negative = model.negative_prompt_for(job.teacher.negative_prompt)
            sampler = TeacherSampler(model, schedule, scale, negative)
            sampler.on_batch = lambda done: bar.advance(done * sampler.nfe)
            return evaluate(sampler, sampler.nfe, captions, seeds)

        rows["teacher"] = sample_teacher(teacher_solver(model), guidance)
        rows["undistilled"] = sample_teacher(job.steps, 1.0)

        def sample_student(texts: Sequence[str], numbers: Sequence[int]) -> Videos:
            made = student.generate(texts, numbers)
            bar.advance(len(texts) * len(job.steps))
            return np.stack(made.videos)

        rows["student"] = evaluate(sample_student, len(job.steps), captions, seeds)
    return rows


def _shown(captions: Sequence[world.Caption]) -> list[tuple[int, world.Caption]]:
    """The captions whose videos are kept, with their numbers."""
    return list(enumerate(captions[:SHOWN]))


def _video_name(index: int, row: str, caption: world.Caption) -> str:
    return f"videos/{index:02d}_{row}_{caption.text().replace(' ', '-')[:60]}.mp4"


def _write_results(
    written: WrittenFiles,
    rows: dict[str, Row],
    captions: Sequence[world.Caption],
    metrics: dict[str, Any],
    trace: list[dict[str, Any]],
    job: Job,
) -> None:
    from lightx2v_sgmd.apps.report import Example, report_page

    texts = [caption.text() for caption in captions[:SHOWN]]
    examples = []
    for index, caption in _shown(captions):
        paths = {name: _video_name(index, name, caption) for name in rows}
        for name, path in paths.items():
            # Enlarged without smoothing: players blur 32 pixels beyond recognition.
            video = rows[name].videos[index].repeat(6, axis=1).repeat(6, axis=2)
            write_video(video, written.folder / path, world.FPS, written.publish(path))
        right = {name: rows[name].verdicts[index].all_attributes for name in rows}
        videos = {name: written.folder / path for name, path in paths.items()}
        examples.append(Example(texts[index], videos, right))
    contact_sheet(
        [rows[name].videos[i] for i in range(min(8, len(texts))) for name in rows],
        written.folder / "contact_sheet.png",
        captions=[f"{name}: {text}" for text in texts[:8] for name in rows],
        publish=written.publish("contact_sheet.png"),
    )
    written.write_text("metrics.json", json.dumps(metrics, indent=2) + "\n")
    written.write_text("report.html", report_page(metrics, trace, examples, job))


def _say_what_was_made(out: Path, metrics: dict[str, Any], quiet: bool) -> None:
    if quiet:
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    title = f"{metrics['gap_closed']:.0%} of the gap in all_attributes closed"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=11)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in ROWS:
        values = [metrics[row][key] for key in COLUMNS.values()]
        table.add_row(row, *(f"{v}" if isinstance(v, int) else f"{v:.2f}" for v in values))
    console = Console()
    console.print(table)
    for name, what in MADE.items():
        console.print(f"{out / name}  {what}", highlight=False, soft_wrap=True)


COLUMNS = {
    "NFE": "nfe",
    "colour": "colour",
    "shape": "shape",
    "direct.": "direction",
    "speed": "speed",
    "all": "all_attributes",
    "motion": "motion",
    "Frech.": "frechet",
    "cover.": "coverage",
}
MADE = {
    "report.html": "the report: open it in a browser",
    "videos/": "mp4 videos of teacher, undistilled teacher and student",
    "contact_sheet.png": "frames of them at a glance",
    "metrics.json": "every number",
    "student/": "the exported student; runs in WanPipeline and in lightx2v-sgmd generate",
    "run/": "the training run: losses, checkpoints, samples",
}
