"""Reads what a model's folder says about its videos and prompts, beside the weights.

``video.json`` holds the size, length and frame rate that the model was made for and, optionally,
the prompt that guidance leads away from (``negative_prompt``). ``prompts.txt`` has the prompts that
a student of it can be trained on. Both files are optional.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.files.prompts import read_prompts
from lightx2v_sgmd.system.errors import UserError, with_remedy
from lightx2v_sgmd.system.resources import shipped_model
from lightx2v_sgmd.untrusted.configs import check_video
from lightx2v_sgmd.untrusted.json_text import read_json_object

VIDEO_FILE: Final = "video.json"
PROMPTS_FILE: Final = "prompts.txt"


def model_folder(path: str | Path) -> Path:
    """The folder of a model: that of a shipped model for its name, otherwise the path itself."""
    return shipped_model(str(path)) or Path(path)


def read_video_facts(folder: Path) -> tuple[VideoFacts | None, str | None]:
    """The facts in ``video.json``.

    Returns:
        The size, length and frame rate that the model was made for, None without the file; and the
        negative prompt, None if the file names none.

    Raises:
        UserError: the file is damaged, or a value in it is out of range.
    """
    path = folder / VIDEO_FILE
    if not path.is_file():
        return None, None
    content = read_json_object(path, remedy="copy the model again")
    try:
        check_video(content)
    except UserError as error:
        raise UserError(f"{path}: {with_remedy(str(error), 'copy the model again')}") from error
    video = VideoFacts(
        height=content["height"],
        width=content["width"],
        num_frames=content["num_frames"],
        fps=float(content["fps"]),
    )
    return video, content.get("negative_prompt")


def shipped_prompts(name: str) -> list[str] | None:
    """The prompts of a shipped model, in order, duplicates included; None for any other name.

    Raises:
        UserError: the model has no prompts, or they cannot be read.
    """
    folder = shipped_model(name)
    return None if folder is None else read_prompts(folder / PROMPTS_FILE)
