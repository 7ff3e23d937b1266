"""Finds the videos of two folders that belong together, and the text that both were made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightx2v_sgmd.apps.evaluation.sources import VideoSource, video_files
from lightx2v_sgmd.files.prompts import prompt_problem, read_prompts
from lightx2v_sgmd.system.errors import UserError, joined
from lightx2v_sgmd.untrusted.json_text import CONFIG, parse_json
from lightx2v_sgmd.untrusted.reading import read_file

_VBENCH_NAME: Final = re.compile(r"(.+)-\d+")
_SHOWN: Final = 3


@dataclass(frozen=True)
class VideoPair:
    """A video of each side, made from one prompt."""

    prompt: str
    a: Path
    b: Path


def find_pairs(a: Path, b: Path, prompts: Path | None) -> list[VideoPair]:
    """The pairs of two folders.

    With a prompt file, the videos of each folder belong to its prompts as ``evaluate`` has it.
    Without one, files of one name belong together, and the prompt is that of the sidecars that
    ``generate`` writes, or that of VBench's file names (``PROMPT-0.mp4``).

    Args:
        a: A folder of mp4 files.
        b: The other one.
        prompts: A prompt file.

    Raises:
        UserError: a folder has no videos, they do not belong together, or have no prompt.
    """
    files = [_videos(folder, option) for folder, option in ((a, "--a"), (b, "--b"))]
    if prompts is not None:
        return _by_prompts(a, b, files, read_prompts(prompts))
    names = [{file.name for file in side} for side in files]
    for mine, other, option in ((0, 1, "--b"), (1, 0, "--a")):
        if missing := sorted(names[mine] - names[other]):
            raise UserError(
                f"{option}: lacks {joined(missing, _SHOWN)}, which the other folder has; give both "
                "folders videos of the same names, or name their prompts with --prompts FILE"
            )
    return [VideoPair(_prompt(a / name, b / name), a / name, b / name) for name in sorted(names[0])]


def _videos(folder: Path, option: str) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{option}: {folder} is not a folder; name a folder of .mp4 files")
    found = sorted(folder.glob("*.mp4"))
    if not found:
        raise UserError(f"{option}: {folder} has no .mp4 files; name a folder that has some")
    return found


def _by_prompts(a: Path, b: Path, files: list[list[Path]], prompts: list[str]) -> list[VideoPair]:
    counts = [len(side) for side in files]
    if counts[0] != counts[1]:
        raise UserError(
            f"--a has {counts[0]} videos and --b has {counts[1]}; give both the same number"
        )
    seeds = max(1, counts[0] // len(prompts))
    sides = [
        video_files(VideoSource(str(folder), "videos", files=tuple(side)), prompts, seeds, option)
        for folder, side, option in ((a, files[0], "--a"), (b, files[1], "--b"))
    ]
    return [VideoPair(*pair) for pair in zip(prompts * seeds, *sides, strict=True)]


def _prompt(a: Path, b: Path) -> str:
    """The prompt of two files of one name."""
    found = {side: _told(side) for side in (a, b)}
    told = {prompt for prompt in found.values() if prompt is not None}
    if len(told) > 1:
        raise UserError(
            f"{a.name}: was made from {found[a]!r} in one folder and from {found[b]!r} in the "
            "other; pair videos of the same prompt"
        )
    if not told and (named := _VBENCH_NAME.fullmatch(a.stem)):
        told = {named[1]}
    if not told:
        raise UserError(
            f"{a}: nothing says its prompt; keep the .json that generate writes beside a video, or "
            "name the prompts with --prompts FILE"
        )
    prompt = told.pop()
    if problem := prompt_problem(prompt):
        raise UserError(f"{a}: its prompt {problem}; correct it")
    return prompt


def _told(video: Path) -> str | None:
    """The prompt that a video's sidecar says; None if there is none."""
    try:
        content = parse_json(read_file(video.with_suffix(".json"), CONFIG.size), CONFIG)
    except (OSError, ValueError):
        return None
    prompt = content.get("prompt") if isinstance(content, dict) else None
    return prompt.strip() or None if isinstance(prompt, str) else None
