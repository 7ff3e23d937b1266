"""Videos that are there are found, whichever split made them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from infer.batch.requests import default_name
from infer.batch.sidecars import is_there, publish, sidecar
from lightx2v_sgmd.apps.evaluation.reusing import all_videos, take_over
from lightx2v_sgmd.apps.evaluation.shards import Shard, folder_of, ranges

PROMPTS = ("a dog", "a cat", "a cow", "a hen")


class Maker:
    """Makes a range as ``generate`` does: what is there with these options is not made again."""

    clock_ns = 10**18

    def __init__(self, options: str = "") -> None:
        self.made: list[int] = []
        self.options = options

    def __call__(self, first: int, end: int, out: Path) -> Sequence[Path]:
        out.mkdir(parents=True, exist_ok=True)
        files = [out / f"{index - first:04d}.mp4" for index in range(first, end)]
        for index, file in zip(range(first, end), files, strict=True):
            if not (file.exists() and file.read_text() == f"{self.options}{index}"):
                file.write_text(f"{self.options}{index}")
                Maker.clock_ns += 1
                os.utime(file, ns=(Maker.clock_ns, Maker.clock_ns))
                self.made.append(index)
        return files


def test_what_shards_made_is_found_and_the_rest_is_made(tmp_path: Path) -> None:
    make, videos = Maker(), tmp_path / "videos"
    assert Shard.parse("2/3") == Shard(2, 3)
    first, end = Shard(2, 3).range(10)
    make(first, end, videos / folder_of(first, end))
    (videos / folder_of(first, end) / "0001.mp4").unlink()  # it was stopped before its end
    (videos / "notes").mkdir()
    assert ranges(videos, 10) == [(3, 6), (0, 3), (6, 10)]
    make.made.clear()
    found = all_videos(videos, 10, make)
    assert sorted(make.made) == [0, 1, 2, 4, 6, 7, 8, 9]
    assert {index: path.read_text() for index, path in found.items()} == {
        index: str(index) for index in range(10)
    }
    make.made.clear()
    assert all_videos(videos, 10, make) == found and make.made == []


def test_an_earlier_splits_videos_of_other_options_are_not_made_again(tmp_path: Path) -> None:
    """Three of four shards are there; they are found, and only the fourth one's are made."""
    old, new = Maker("old "), Maker("new ")
    for first, end in ((0, 5), (5, 10), (0, 10)):
        old(first, end, tmp_path / folder_of(first, end))
    for number in (1, 2, 3):
        first, end = Shard(number, 4).range(10)
        new(first, end, tmp_path / folder_of(first, end))
    assert sorted(new.made) == [0, 1, 2, 3, 4, 5, 6]
    new.made.clear()
    found = all_videos(tmp_path, 10, new)
    assert new.made == [7, 8, 9]
    assert [found[index].read_text() for index in range(10)] == [f"new {i}" for i in range(10)]
    new.made.clear()
    assert all_videos(tmp_path, 10, new) == found and new.made == []


def test_the_ranges_of_the_last_split_come_first(tmp_path: Path) -> None:
    """Ranges that an earlier split left with other options are not looked at."""
    for name in ("00000-00002", "00000-00001", "00001-00004", "00002-00004", "00000-00009"):
        (tmp_path / name).mkdir()
    assert ranges(tmp_path, 4, 2) == [(0, 2), (2, 4), (0, 1), (1, 4)]
    assert ranges(tmp_path, 4, 3) == [(0, 1), (2, 4), (0, 2), (1, 4)]


def made(folder: Path, index: int, first: int = 0, content: str = "") -> Path:
    """A video of ours, in the folder of the range that begins with ``first``."""
    folder.mkdir(parents=True, exist_ok=True)
    video = folder / f"{default_name(index - first, PROMPTS[index])}.mp4"
    temporary = folder / "temporary"
    temporary.write_text(content or f"video {index}")
    publish(temporary, video, {"prompt": PROMPTS[index], "seed": index})
    return video


def test_a_range_takes_over_what_other_folders_have_of_it(tmp_path: Path) -> None:
    side = tmp_path / "videos" / "weights"
    made(side, 0)
    made(side, 1)
    made(side / "00002-00004", 2, 2)
    changed = made(side / "00002-00004", 3, 2)
    changed.write_text("edited by somebody")
    out = side / "00001-00004"
    own = made(out, 2, 1, "of another run")
    take_over(PROMPTS[1:], 1, out, quiet=True)
    assert sorted(path.name for path in out.glob("*.mp4")) == ["0000_a_cat.mp4", "0001_a_cow.mp4"]
    assert is_there(out / "0000_a_cat.mp4", {"prompt": "a cat", "seed": 1})
    assert own.read_text() == "of another run"
    # What is made anew in one folder leaves the other one's as it is.
    temporary = out / "temporary"
    temporary.write_text("other options")
    publish(temporary, out / "0000_a_cat.mp4", {"prompt": "a cat", "seed": 9})
    assert (side / "0001_a_cat.mp4").read_text() == "video 1"
    assert json.loads(sidecar(side / "0001_a_cat.mp4").read_text())["seed"] == 1


def test_the_newest_of_two_is_taken_over(tmp_path: Path) -> None:
    made(tmp_path, 3, content="old")
    made(tmp_path / "00003-00004", 3, 3, content="new")
    take_over(PROMPTS[2:], 2, tmp_path / "00002-00004", quiet=True)
    assert (tmp_path / "00002-00004" / "0001_a_hen.mp4").read_text() == "new"


def test_an_older_one_is_taken_over_if_the_newest_is_not_ours(tmp_path: Path) -> None:
    made(tmp_path, 3, content="old")
    made(tmp_path / "00003-00004", 3, 3, content="new").write_text("edited")
    take_over(PROMPTS[2:], 2, tmp_path / "00002-00004", quiet=True)
    assert (tmp_path / "00002-00004" / "0001_a_hen.mp4").read_text() == "old"
