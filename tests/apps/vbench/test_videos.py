"""The videos: those that are given are found, and all are linked under VBench's names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.apps.evaluation.reusing import all_videos
from lightx2v_sgmd.apps.vbench.suite import read_suite
from lightx2v_sgmd.apps.vbench.videos import given_videos, link
from lightx2v_sgmd.system.errors import UserError
from tests.apps.evaluation.test_reusing import Maker
from tests.apps.vbench.test_suite import write


def test_links_bear_vbenchs_names_and_nothing_else_is_there(tmp_path: Path) -> None:
    suite, out = read_suite(write(tmp_path)), tmp_path / "out"
    videos = all_videos(out / "videos", suite.count, Maker())
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
