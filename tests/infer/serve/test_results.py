"""The folder of finished videos."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from infer.serve.jobs import JobStore
from infer.serve.results import Results


def test_only_videos_with_a_jobs_name_are_swept(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    mine, theirs = folder / "video_of_the_sea.mp4", folder / f"video_{'0' * 32}.mp4"
    for file in (mine, theirs):
        file.write_text("film")
    results = Results(tmp_path)
    with closing(JobStore(results.queue)) as store:
        results.sweep(store)
    assert mine.exists() and not theirs.exists()
