"""Finds out what a path holds that is to be evaluated: a student, a teacher or mp4 files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.sources.model_folder import model_folder
from lightx2v_sgmd.families.sources.parts import UNET
from lightx2v_sgmd.files.manifest import Manifest, VideoFacts, read_manifest
from lightx2v_sgmd.files.run_files import is_checkpoint, is_run
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_of
from lightx2v_sgmd.system.errors import UserError

SourceKind = Literal["student", "teacher", "videos"]


@dataclass(frozen=True)
class VideoSource:
    """One of the two sides: what ``--weights`` or ``--against`` names.

    Attributes:
        path: The path as the user gave it.
        kind: A student, a teacher, or videos.
        nfe: A student's network evaluations for one video; 0 for others.
        model: The model of a student or a teacher.
        manifest: The manifest of a student.
        video: The video size of a model's training; None if no file says it.
        files: The videos of a folder, sorted by name.
    """

    path: str
    kind: SourceKind
    nfe: int = 0
    model: Model | None = None
    manifest: Manifest | None = None
    video: VideoFacts | None = None
    files: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """The source's folder on the disk."""
        return model_folder(self.path)


def open_source(path: str | Path, option: str) -> VideoSource:
    """Opens what a path holds, without loading weights.

    Args:
        path: A folder, a file of weights, ``sprites`` or a hub id.
        option: The name of the option, for messages.

    Raises:
        UserError: the path holds none of the three, or its content cannot be used.
    """
    folder = model_folder(path)
    if not folder.exists() and known_transformer_config(str(path)) is None:
        raise UserError(
            f"{option}: {path} does not exist; name a student that export wrote, a teacher, or a "
            "folder of .mp4 files"
        )
    is_model = any((folder / name).exists() for name in ("model_index.json", "transformer", UNET))
    videos = [] if is_model or not folder.is_dir() else sorted(folder.glob("*.mp4"))
    if videos:
        return VideoSource(str(path), "videos", files=tuple(videos))
    if folder.is_dir() and not any(folder.iterdir()):
        raise UserError(f"{option}: {path} is empty; name a model or a folder of .mp4 files")
    of_training = is_run(folder) or is_checkpoint(folder)
    manifest = read_manifest(folder if folder.is_dir() else folder.parent)
    if manifest is not None or of_training:  # a run is refused, with the command that exports it
        return _student(path)
    try:
        model = open_model(path)
        schedule = schedule_of(model.transformer_weights().header.metadata)
    except UserError as error:
        raise UserError(f"{option}: {str(error).removeprefix('teacher.path: ')}") from error
    if schedule is not None:
        return _student(path)
    return VideoSource(str(path), "teacher", model=model, video=model.video)


def _student(path: str | Path) -> VideoSource:
    from infer.checks import check_student

    checked = check_student(path)
    return VideoSource(
        str(path),
        "student",
        nfe=len(checked.schedule),
        model=checked.model,
        manifest=checked.manifest,
        video=checked.video,
    )


def video_files(source: VideoSource, prompts: Sequence[str], seeds: int, option: str) -> list[Path]:
    """Puts the videos of a folder in the order of a list of prompts.

    Either every video has VBench's name, ``PROMPT-0.mp4``, ``PROMPT-1.mp4`` and so on, or the files
    sorted by name are in the order of the prompts; with several seeds, all prompts with the first
    seed come first, as ``generate`` and this command number them.

    Args:
        source: The folder.
        prompts: The prompts.
        seeds: Videos of each prompt.
        option: The name of the option, for messages.

    Returns:
        One file for each seed and prompt, the seeds outermost.

    Raises:
        UserError: the files have other names, and their number is not prompts times seeds.
    """
    named = [
        Path(source.path) / f"{prompt}-{seed}.mp4" for seed in range(seeds) for prompt in prompts
    ]
    there = {file.name for file in source.files}
    if all(file.name in there for file in named):
        return named
    if len(source.files) == len(named):
        return list(source.files)
    files, texts, numbers = (
        f"{count} {what}{'' if count == 1 else 's'}"
        for count, what in (
            (len(source.files), ".mp4 file"),
            (len(prompts), "prompt"),
            (seeds, "seed"),
        )
    )
    raise UserError(
        f"{option}: {source.path} has {files}, but {texts} with {numbers} ask for {len(named)} "
        "videos; name them "
        "PROMPT-0.mp4 and so on, or keep one for each, sorted by name in the order of the prompts"
    )


def wanted_size(
    source: VideoSource,
    other: VideoSource | None,
    height: int | None,
    width: int | None,
    num_frames: int | None,
) -> VideoFacts:
    """The size of the videos to make: the options, else the size that a side was trained for.

    Raises:
        UserError: neither options nor models say it, or the model cannot make such videos.
    """
    assert source.model is not None, "a folder of videos has its own size"
    facts = source.video or (other.video if other is not None else None)
    given = {"height": height, "width": width, "num_frames": num_frames}
    if facts is None and None in given.values():
        raise UserError(
            f"{source.path} does not say what size it was trained for; give --height, --width and "
            "--num-frames"
        )
    size = {name: value or getattr(facts, name) for name, value in given.items()}
    try:
        source.model.latent_shape(**size)
    except UserError as error:
        text = str(error).replace("video.", "--").replace("num_frames", "num-frames")
        raise UserError(text) from error
    fps = source.model.fps if facts is None else facts.fps
    return VideoFacts(size["height"], size["width"], size["num_frames"], fps)
