"""Folders of videos: which file belongs to which prompt and seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.apps.evaluation.sources import open_source, video_files
from lightx2v_sgmd.system.errors import UserError


def clips(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def names(folder: Path, prompts: list[str], seeds: int) -> list[str]:
    source = open_source(folder, "--weights")
    assert source.kind == "videos"
    return [file.name for file in video_files(source, prompts, seeds, "--weights")]


def test_vbenchs_names_say_prompt_and_seed(tmp_path: Path) -> None:
    every = ("a cat-0.mp4", "a cat-1.mp4", "a dog-0.mp4", "a dog-1.mp4", "a fox-0.mp4")
    folder = clips(tmp_path / "v", *every)
    assert names(folder, ["a dog", "a cat"], 2) == [
        *("a dog-0.mp4", "a cat-0.mp4", "a dog-1.mp4", "a cat-1.mp4")
    ]


def test_otherwise_the_order_of_names_is_that_of_prompts(tmp_path: Path) -> None:
    folder = clips(tmp_path / "v", "0001_b.mp4", "0000_a.mp4", "0000_a.json")
    assert names(folder, ["a", "b"], 1) == ["0000_a.mp4", "0001_b.mp4"]
    with pytest.raises(UserError, match="has 2 .mp4 files, but 3 prompts with 1 seed ask for 3"):
        names(folder, ["a", "b", "c"], 1)
    with pytest.raises(UserError, match="but 1 prompt with 3 seeds ask for 3 videos"):
        names(folder, ["a"], 3)


def test_a_run_is_refused_with_the_command_that_exports_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="lightx2v-sgmd export"):
        open_source(tmp_path / "run", "--weights")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="--against"):
        open_source(tmp_path, "--against")
