"""The videos: every one made once, by whichever machine, and linked under VBench's names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.evaluation.shards import Shard, folder_of, ranges
from lightx2v_sgmd.apps.vbench.suite import read_suite
from lightx2v_sgmd.apps.vbench.videos import all_videos, given_videos, link
from lightx2v_sgmd.system.errors import UserError
from tests.apps.vbench.test_suite import write


class Maker:
    """Makes a range as ``generate`` does: what is there is not made again."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, first: int, end: int, out: Path) -> Sequence[Path]:
        out.mkdir(parents=True, exist_ok=True)
        files = [out / f"{index - first:04d}.mp4" for index in range(first, end)]
        for index, file in zip(range(first, end), files, strict=True):
            if not file.exists():
                file.write_text(str(index))
                self.made.append(index)
        return files


def test_what_shards_made_is_found_and_the_rest_is_made(tmp_path: Path) -> None:
    suite, make, videos = read_suite(write(tmp_path)), Maker(), tmp_path / "videos"
    assert Shard.parse("2/3") == Shard(2, 3)
    first, end = Shard(2, 3).range(suite.count)
    make(first, end, videos / folder_of(first, end))
    (videos / folder_of(first, end) / "0001.mp4").unlink()  # it was stopped before its end
    (videos / "notes").mkdir()
    assert ranges(videos, suite.count) == [(3, 6), (0, 3), (6, 10)]
    make.made.clear()
    found = all_videos(suite, videos, make)
    assert sorted(make.made) == [0, 1, 2, 4, 6, 7, 8, 9]
    assert {index: path.read_text() for index, path in found.items()} == {
        index: str(index) for index in range(10)
    }
    make.made.clear()
    assert all_videos(suite, videos, make) == found and make.made == []


def test_links_bear_vbenchs_names_and_nothing_else_is_there(tmp_path: Path) -> None:
    suite, out = read_suite(write(tmp_path)), tmp_path / "out"
    videos = all_videos(suite, out / "videos", Maker())
    folder = link(suite, videos, out)
    assert sorted(path.name for path in folder.iterdir()) == sorted(map(suite.name, range(10)))
    assert (folder / "a red circle-2.mp4").read_text() == "7"
    # The output can move as a whole, and what is missing now is no longer linked.
    moved = tmp_path / "moved"
    out.rename(moved)
    assert (moved / "vbench/videos/a red circle-2.mp4").read_text() == "7"
    here = {index: moved / path.relative_to(out) for index, path in videos.items() if index != 7}
    assert not (link(suite, here, moved) / "a red circle-2.mp4").exists()
    (moved / "vbench/videos/mine.mp4").write_text("mine")
    with pytest.raises(UserError, match="is not a link of this command"):
        link(suite, here, moved)


def test_a_folder_of_videos_may_lack_some(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path))
    files = [tmp_path / suite.name(3), tmp_path / suite.name(8), tmp_path / "other.mp4"]
    assert given_videos(suite, files) == {3: files[0], 8: files[1]}
    with pytest.raises(UserError, match="no video is named as VBench looks for it"):
        given_videos(suite, files[2:])
