"""Prompts in, mp4 files out: what can be refused is refused before weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from infer.checks import check_student, wanted_size
from infer.engine import load_checked, seed_list
from infer.video import check_writable, write_video
from lightx2v_sgmd.errors import UserError


def generate(
    weights: str | Path,
    prompts: str | Sequence[str] | Path,
    out: str | Path,
    *,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    attention: str = "auto",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    assume_schedule: str | None = None,
    batch_size: int | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Makes videos and writes them as mp4.

    Args:
        weights: See ``load_student``, as for ``attention``, ``dtype``, ``device`` and
            ``assume_schedule``.
        prompts: One prompt, several, or a ``Path`` to a file of them.
        out: A file for a single prompt (``.mp4`` is added if it has no suffix), else a folder that
            gets ``0000_<words of the prompt>.mp4`` and so on.
        seed: Of the first video; each next one takes the next number.
        height: See ``Student.generate``, as for ``width``, ``num_frames`` and ``batch_size``.
        width: In pixels.
        num_frames: ``4k + 1``.
        fps: Default the rate of the videos that the student was trained on.
        quiet: No progress bar.

    Returns:
        The files, in the order of the prompts.

    Raises:
        UserError: what ``load_student`` and ``Student.generate`` refuse, prompts that cannot be
            read, or an output that cannot be written (found before anything is loaded).
    """
    texts = _prompts(prompts)
    files = _outputs(texts, Path(out), alone=isinstance(prompts, str))
    checked = check_student(weights, assume_schedule)
    wanted_size(checked, height, width, num_frames)
    seed_list(seed, len(texts))
    student = load_checked(checked, attention, dtype, device)
    made = student.generate(
        texts,
        seed,
        height=height,
        width=width,
        num_frames=num_frames,
        batch_size=batch_size,
        quiet=quiet,
    )
    for video, file in zip(made.videos, files, strict=True):
        write_video(video, file, fps or made.fps)
    return files


def _prompts(prompts: str | Sequence[str] | Path) -> list[str]:
    if isinstance(prompts, Path):
        from lightx2v_sgmd.prompts import read_prompts

        return list(read_prompts(prompts))
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(text.strip() for text in texts):
        raise UserError("prompt: is empty; say what the video shows")
    return texts


def _outputs(prompts: Sequence[str], out: Path, alone: bool) -> list[Path]:
    """The files to write, each of which can be written."""
    if alone and not out.is_dir():
        if out.suffix.lower() not in ("", ".mp4"):
            raise UserError(f"{out}: videos are written as .mp4; end --out with .mp4")
        file = out.with_suffix(".mp4")
        check_writable(file)
        return [file]
    if out.suffix.lower() == ".mp4":
        raise UserError(f"{out}: is one file for {len(prompts)} prompts; give a folder as --out")
    check_writable(out, folder=True)
    return [out / f"{index:04d}_{_slug(prompt)}.mp4" for index, prompt in enumerate(prompts)]


def _slug(prompt: str) -> str:
    words = re.findall(r"\w+", prompt.lower())
    return "_".join(words)[:48].strip("_") or "video"
