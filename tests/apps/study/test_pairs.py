"""Which videos belong together, and what they were made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.study.pairs import VideoPair, find_pairs
from lightx2v_sgmd.system.errors import UserError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for side in "ab":
        (tmp_path / side).mkdir()
    return tmp_path / "a", tmp_path / "b"


def put(folder: Path, *names: str, prompt: str | None = None) -> None:
    for name in names:
        (folder / name).write_bytes(b"")
        if prompt is not None:
            (folder / name).with_suffix(".json").write_text(json.dumps({"prompt": prompt}))


def test_the_sidecars_prompt(folders: tuple[Path, Path]) -> None:
    a, b = folders
    put(a, "0000_x.mp4", prompt="a red circle")
    put(b, "0000_x.mp4", prompt="a red circle")
    expected = VideoPair("a red circle", a / "0000_x.mp4", b / "0000_x.mp4")
    assert find_pairs(a, b, None) == [expected]
    put(b, "0000_x.mp4", prompt="a blue circle")
    with pytest.raises(UserError, match="pair videos of the same prompt"):
        find_pairs(a, b, None)


def test_vbenchs_names(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        put(folder, "a dog, in a well-known park-3.mp4")
    (pair,) = find_pairs(*folders, None)
    assert pair.prompt == "a dog, in a well-known park"


def test_a_prompt_file_in_the_order_of_the_names(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = folders
    put(a, "1.mp4", "2.mp4", "3.mp4", "4.mp4")
    put(b, "x1.mp4", "x2.mp4", "x3.mp4", "x4.mp4")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\na cat\n")
    pairs = find_pairs(a, b, prompts)
    assert [pair.prompt for pair in pairs] == ["a dog", "a cat", "a dog", "a cat"]
    assert [(pair.a.name, pair.b.name) for pair in pairs][2] == ("3.mp4", "x3.mp4")
    (b / "x4.mp4").unlink()
    with pytest.raises(UserError, match="--a has 4 videos and --b has 3"):
        find_pairs(a, b, prompts)


def test_videos_that_one_side_lacks_are_named_not_dropped(folders: tuple[Path, Path]) -> None:
    a, b = folders
    put(a, "x-0.mp4", "y-0.mp4")
    put(b, "x-0.mp4")
    with pytest.raises(UserError, match="--b: lacks y-0.mp4"):
        find_pairs(a, b, None)


def test_what_cannot_be_paired_is_refused(folders: tuple[Path, Path]) -> None:
    a, b = folders
    with pytest.raises(UserError, match="--a: .* has no .mp4"):
        find_pairs(a, b, None)
    with pytest.raises(UserError, match="--a: .* is not a folder"):
        find_pairs(a / "none", b, None)
    for folder in folders:
        put(folder, "video.mp4")
    with pytest.raises(UserError, match="nothing says its prompt"):
        find_pairs(a, b, None)
