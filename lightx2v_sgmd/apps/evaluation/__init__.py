"""``lightx2v-sgmd evaluate``: measures a student, a teacher or a folder of videos."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.apps.evaluation.making import (
    check_guidance,
    guidance_facts,
    guidance_of,
    range_videos,
    student_videos,
    teacher_videos,
    with_second_scale,
)
from lightx2v_sgmd.apps.evaluation.measuring import (
    SideVideos,
    hashes_of,
    measure_files,
    measure_groups,
)
from lightx2v_sgmd.apps.evaluation.options import EvaluateOptions, chosen_metrics
from lightx2v_sgmd.apps.evaluation.page import report_page
from lightx2v_sgmd.apps.evaluation.reusing import all_videos
from lightx2v_sgmd.apps.evaluation.scores.scoring import (
    Asked,
    check_scores,
    clip_of,
    features_of,
    i3d_of,
    videoalign_of,
)
from lightx2v_sgmd.apps.evaluation.shards import (
    Shard,
    ShardedCall,
    folder_of,
    make_shards,
    started_ranges,
)
from lightx2v_sgmd.apps.evaluation.sources import VideoSource, open_source, video_files, wanted_size
from lightx2v_sgmd.apps.evaluation.summary import Side, summarise
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.files.images import check_image
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.files.prompts import note_unread, read_images, read_prompts
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.outputs import (
    OutputLock,
    WrittenFiles,
    locked_folder,
    refuse_overlap,
    resolved,
)
from lightx2v_sgmd.sampling.teacher_steps import solver_text, teacher_solver
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError, short_line

__all__ = ["EvaluateOptions", "Evaluation", "evaluate", "evaluate_shard"]

FOLDERS: Final = ("measured", "videos", "videos/*")
"""The folders in which files appear by rename."""
RESULTS: Final = ("metrics.json", "report.html")
MOST_VIDEOS: Final = 1_000_000
"""The most videos of a side."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        out: The folder.
        metrics: The content of ``metrics.json``.
    """

    out: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _Plan:
    """The request, after everything was checked that can be without work."""

    sources: dict[str, VideoSource]
    images: dict[str, list[Path | None]]
    sizes: dict[str, VideoFacts | None]
    own: dict[str, list[Path]]
    prompts: list[str]
    metrics: tuple[str, ...]
    teacher: Model | None
    options: EvaluateOptions

    @property
    def texts(self) -> list[str]:
        """The prompt of each video: all prompts for the first seed, then for the next."""
        return self.prompts * self.options.seeds

    def images_of(self, side: str) -> list[Path | None]:
        """The image that each video of a side starts from; empty if none does."""
        return self.images[side] * self.options.seeds

    @property
    def seeds(self) -> list[int]:
        """The seed of each video."""
        return [self.options.seed + index for index in range(len(self.texts))]


def evaluate(
    weights: str | Path,
    prompts: str | Path,
    out: str | Path,
    *,
    against: str | Path | None = None,
    options: EvaluateOptions | None = None,
    nproc: int = 1,
    quiet: bool = False,
) -> Evaluation:
    """Makes videos, measures them, and writes ``metrics.json`` and ``report.html``.

    Both sides get the same prompts and seeds, and so start from the same noise. Videos and
    measurements that are there, made from the same content and options, are not made again; the
    same call resumes one that was stopped.

    Args:
        weights: A student that ``export`` wrote, a teacher, or a folder of mp4 files.
        prompts: A prompt file. Lines of ``.jsonl`` name the image that videos of image-to-video
            models start from.
        out: The folder for everything.
        against: The reference: likewise a student, a teacher or a folder of mp4 files.
        options: Metrics, seeds, sizes and so on.
        nproc: Number of processes on this machine that make the videos, each on its own GPU. The
            videos are measured in this process.
        quiet: Show no progress.

    Raises:
        UserError: something that was asked for cannot be; nothing has been made.
        RunError: videos could not be made.
    """
    options = options or EvaluateOptions()
    plan = _plan(weights, prompts, Path(out), against, options)
    note_unread(prompts, quiet, images=any(plan.images.values()))
    folder = resolved(out)
    if nproc > 1 and (made := [side for side, size in plan.sizes.items() if size is not None]):
        call = ShardedCall(
            plan.sources["weights"].path,
            str(folder),
            str(Path(prompts).absolute()),
            plan.sources["against"].path if against is not None else None,
        )
        WrittenFiles(folder).check(RESULTS)  # now, before the work, and again with the lock
        make_shards(call, options, nproc, len(made) * len(plan.texts), quiet)
    with locked_folder(folder, "evaluate", quiet, FOLDERS) as lock:
        written = WrittenFiles(folder)
        written.check(RESULTS)
        sides = _measure(plan, written, lock, nproc, quiet)
        results = summarise(sides, plan.prompts, plan.seeds, plan.metrics)
        for caution in results.get("cautions", ()):
            note(f"caution: {caution}", quiet)
        note("writing the report", quiet)
        written.write_text("metrics.json", json.dumps(results, indent=1) + "\n")
        written.write_text("report.html", report_page(results, folder, options.shown))
    return Evaluation(Path(out), results)


def evaluate_shard(
    weights: str | Path,
    prompts: str | Path,
    out: str | Path,
    shard: Shard,
    *,
    against: str | Path | None = None,
    options: EvaluateOptions | None = None,
    quiet: bool = False,
) -> None:
    """Makes a part of the videos of ``evaluate``, and measures nothing.

    When the parts of all machines are below one folder, ``evaluate`` measures them.

    Args:
        weights, prompts, out, against, options, quiet: As for ``evaluate``.
        shard: The part; of each side that is a model, the same videos.

    Raises:
        UserError: something that was asked for cannot be, or there is nothing to make.
        RunError: videos could not be made.
    """
    options = options or EvaluateOptions()
    plan = _plan(weights, prompts, Path(out), against, options)
    if not any(plan.sizes.values()):
        raise UserError(
            "--shard: is for making videos, and folders of videos are given; leave it out"
        )
    first, end = shard.range(len(plan.texts))
    if first == end:
        return
    for side in plan.sources:
        if plan.sizes[side] is not None:
            folder = resolved(out) / "videos" / side / folder_of(first, end)
            _make(plan, side, first, end, folder, quiet)
    note(
        f"videos {first} to {end - 1} of {len(plan.texts)} are there; when those of all shards are "
        "below one folder, run the command without --shard",
        quiet,
    )


def _make(plan: _Plan, side: str, first: int, end: int, out: Path, quiet: bool) -> Sequence[Path]:
    """Makes a range of a model's videos in its folder."""
    source, size = plan.sources[side], plan.sizes[side]
    assert size is not None, "a model's videos have a size"
    guidance = guidance_of(plan.options, list(plan.sources.values()))
    texts, images = plan.texts[first:end], plan.images_of(side)[first:end]
    return range_videos(source, texts, size, guidance, plan.options, first, out, quiet, images)


def _plan(
    weights: str | Path,
    prompts: str | Path,
    out: Path,
    against: str | Path | None,
    options: EvaluateOptions,
) -> _Plan:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("evaluate starts its processes itself: give --nproc N, without torchrun")
    texts = read_prompts(prompts)
    if len(texts) * options.seeds > MOST_VIDEOS:
        raise UserError(
            f"--seeds: {options.seeds:,} seeds of {len(texts):,} prompts are more than the "
            f"{MOST_VIDEOS:,} videos that one evaluation has; use fewer"
        )
    if options.seed + len(texts) * options.seeds > 2**63:
        raise UserError(f"--seed: {options.seed} is too large; use one below 2^63, less the videos")
    sources = {"weights": open_source(weights, "--weights")}
    if against is not None:
        sources["against"] = open_source(against, "--against")
    check_guidance(options, list(sources.values()))
    options = with_second_scale(options, list(sources.values()))
    teacher = _features_model(sources, options)
    metrics = chosen_metrics(options, against is not None, teacher is not None)
    refuse_overlap(
        resolved(out),
        {
            "--prompts": Path(prompts),
            "--i3d": options.i3d,
            "--clip": options.clip,
            "--videoalign": options.videoalign,
            "--teacher": None if options.teacher is None else Path(options.teacher),
            **{f"--{side}": source.folder for side, source in sources.items()},
        },
    )
    check_writable(out, folder=True)
    images = {side: _images(source, prompts, texts, side) for side, source in sources.items()}
    sizes: dict[str, VideoFacts | None] = {}
    own = {}
    for side, source in sources.items():
        other = next((s for name, s in sources.items() if name != side), None)
        if source.kind == "videos":
            sizes[side] = None
            own[side] = video_files(source, texts, options.seeds, f"--{side}")
        else:
            asked = (options.height, options.width, options.num_frames)
            size = sizes[side] = wanted_size(source, other, *asked)
            if size.num_frames < 2:
                raise UserError(
                    f"--num-frames: videos of --{side} would have one frame, but measuring motion "
                    "needs two; give a larger --num-frames, or a model of videos"
                )
    distances = {"frechet", "fvd"}
    if len(texts) * options.seeds < 2 and distances & set(metrics):
        metrics = tuple(name for name in metrics if name not in distances)
        if distances & set(options.metrics):
            raise UserError("--metrics: frechet and fvd need two videos or more; add prompts")
    made = [size.num_frames for size in sizes.values() if size is not None]
    check_scores(options, made if "fvd" in metrics else ())
    return _Plan(sources, images, sizes, own, texts, metrics, teacher, options)


def _images(
    source: VideoSource, prompts: str | Path, texts: Sequence[str], side: str
) -> list[Path | None]:
    """The image that each prompt's videos start from; empty if those of a side start from none.

    Raises:
        UserError: an image is missing or cannot be read, or a prompt has two.
    """
    model = source.model
    if model is None or model.takes_image == "never":
        return []
    images = read_images(prompts)
    if model.takes_image == "always" and not (images and all(images)):
        raise UserError(
            f"--prompts: {prompts} has prompts without an image, and --{side} {source.path} starts "
            'from one; give a .jsonl file whose lines have "prompt" and "image"'
        )
    found: dict[str, Path | None] = {}
    for text, image in zip(texts, images, strict=bool(images)):
        if found.setdefault(text, image) != image:
            raise UserError(
                f"--prompts: {prompts} has the prompt {short_line(text, 60)} with two images; give "
                "each prompt one"
            )
        if image is not None:
            check_image(image)
    return images


def _features_model(sources: dict[str, VideoSource], options: EvaluateOptions) -> Model | None:
    """The teacher in whose features the Frechet distance is taken."""
    if options.teacher is not None:
        return open_source(options.teacher, "--teacher").model
    found = [s.model for s in reversed(list(sources.values())) if s.kind == "teacher"]
    return found[0] if found else None


def _measure(
    plan: _Plan, written: WrittenFiles, lock: OutputLock, nproc: int, quiet: bool
) -> dict[str, Side]:
    """Makes and measures the videos of all sides."""
    sides = {}
    for side in plan.sources:
        files = _videos(plan, side, written.folder, lock, nproc, quiet)
        sides[side] = SideVideos(side, files, hashes_of(files), plan.texts, written, quiet)
    values = {side: measure_files(videos) for side, videos in sides.items()}
    asked = Asked(plan.metrics, plan.options, plan.teacher)
    for scores in (clip_of(sides, asked), videoalign_of(sides, asked)):
        for side, found in scores.items():
            values[side] = [{**v, **s} for v, s in zip(values[side], found, strict=True)]
    diversity: dict[str, list[float]] = {}
    if "diversity" in plan.metrics:
        count = len(plan.prompts)
        diversity = {side: measure_groups(videos, count) for side, videos in sides.items()}
    features, i3d = features_of(sides, asked), i3d_of(sides, asked)
    return {
        side: Side(
            about=_about(plan, side),
            files=[_shown_path(path, written.folder) for path in videos.files],
            values=values[side],
            diversity=diversity.get(side),
            features=features.get(side),
            i3d=i3d.get(side),
        )
        for side, videos in sides.items()
    }


def _videos(
    plan: _Plan, side: str, folder: Path, lock: OutputLock, nproc: int, quiet: bool
) -> Sequence[Path]:
    source, size = plan.sources[side], plan.sizes[side]
    out = folder / "videos" / side
    if source.kind == "videos":
        return [file.resolve() for file in plan.own[side]]
    assert size is not None, "a model's videos have a size"
    if started_ranges(out):

        def make(first: int, end: int, folder: Path) -> Sequence[Path]:
            return _make(plan, side, first, end, folder, quiet)

        found = all_videos(out, len(plan.texts), make, nproc)
        return [found[index] for index in range(len(plan.texts))]
    images = plan.images_of(side)
    if source.kind == "student":
        return student_videos(source, plan.texts, size, plan.options, out, quiet, images)
    guidance = guidance_of(plan.options, list(plan.sources.values()))
    return teacher_videos(
        source, plan.texts, size, guidance, plan.options, out, lock, quiet, images
    )


def _about(plan: _Plan, side: str) -> dict[str, Any]:
    """The facts of a side for ``metrics.json``."""
    source = plan.sources[side]
    about: dict[str, Any] = {"path": source.path, "kind": source.kind}
    if source.kind == "teacher":
        about |= {"steps": plan.options.steps}
        about |= guidance_facts(plan.options, source, list(plan.sources.values()))
        if source.model is not None:
            about["solver"] = solver_text(teacher_solver(source.model, steps=plan.options.steps))
    if source.kind == "student":
        about["nfe"] = source.nfe
        if source.manifest is not None:
            about |= {"method": source.manifest.method["name"], "step": source.manifest.step}
    return about


def _shown_path(path: Path, folder: Path) -> str:
    """A video's path below the output folder, or its whole path."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
