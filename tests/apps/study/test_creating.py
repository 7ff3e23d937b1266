"""A new study: complete, blind, and never in the way of another one."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightx2v_sgmd.apps.study import creating
from lightx2v_sgmd.apps.study.creating import StudyOptions, cautions, create_study
from lightx2v_sgmd.apps.study.neutral import Picture, spoiled
from lightx2v_sgmd.apps.study.pairs import VideoPair
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.system.errors import UserError
from tests.apps.study.conftest import CATCH, PAIRS, MadeStudy


def data_of(page: Path) -> dict[str, Any]:
    text = (page / "index.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_every_pair_shows_the_videos_that_the_key_says(made: MadeStudy) -> None:
    for pair in made.key.judged[:3]:
        moving, still = pair.source
        videos = {slot: made.page / "videos" / getattr(pair, slot) for slot in ("first", "second")}
        assert pair.a is not None and moving == still
        for side in ("moving", "still"):
            slot = pair.a if side == "moving" else {"first": "second", "second": "first"}[pair.a]
            frames, _ = read_video(made.folder / side / moving)
            np.testing.assert_array_equal(frames, read_video(videos[slot])[0])
        assert pair.prompt == moving.removesuffix("-0.mp4")


def test_a_catch_trial_is_a_video_beside_its_spoiled_copy(made: MadeStudy) -> None:
    for pair in made.key.catch_trials:
        assert pair.a is None and pair.good is not None
        bad = {"first": "second", "second": "first"}[pair.good]
        good, _ = read_video(made.page / "videos" / getattr(pair, pair.good))
        worse, _ = read_video(made.page / "videos" / getattr(pair, bad))
        distance = np.abs(worse.astype(int) - good).mean()
        assert distance > 10
        # But for the encoder.
        assert np.abs(worse.astype(int) - spoiled(good)).mean() < distance / 2


def test_the_page_does_not_tell_the_sides_apart(made: MadeStudy) -> None:
    data = data_of(made.page)
    assert set(data) == {"study", "questions", "pairs"}
    assert len(data["pairs"]) == PAIRS + CATCH
    assert all(set(pair) == {"id", "prompt", "first", "second"} for pair in data["pairs"])
    assert all(set(question) == {"name", "text"} for question in data["questions"])
    text = (made.page / "index.html").read_text()
    for secret in ("moving", "still", str(made.folder), "spoiled"):
        assert secret not in text.replace("stands still", "")
    names = [name for pair in data["pairs"] for name in (pair["first"], pair["second"])]
    files = sorted(path.name for path in (made.page / "videos").iterdir())
    assert sorted(names) == files and len(set(names)) == 2 * (PAIRS + CATCH)
    assert all(re.fullmatch(r"[0-9a-f]{16}\.mp4", name) for name in names)
    # Neither slot is always the same side's, and no file says when it was made.
    assert len(Counter(pair.a for pair in made.key.judged)) == 2
    assert len({path.stat().st_mtime for path in made.page.rglob("*.*")}) == 1
    assert sorted(path.name for path in made.page.iterdir()) == ["index.html", "videos"]


def test_a_prompt_cannot_end_the_script(made: MadeStudy) -> None:
    assert data_of(made.page)["pairs"][0]["prompt"].startswith("a square number")
    assert (made.page / "index.html").read_text().count("<script") == 2


def test_nothing_is_replaced(made: MadeStudy, tmp_path: Path) -> None:
    a, b = made.folder / "moving", made.folder / "still"
    with pytest.raises(UserError, match="holds a study"):
        create_study(a, b, made.folder / "study", quiet=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        create_study(a, b, tmp_path, quiet=True)
    with pytest.raises(UserError, match="lies in --a"):
        create_study(a, b, a / "study", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_study_that_cannot_be_finished_leaves_nothing(
    made: MadeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(video: Path, target: Path) -> None:
        raise UserError("the last video is bad")

    monkeypatch.setattr(creating, "write_spoiled", fail)
    options = StudyOptions(pairs=1, catch=1)
    with pytest.raises(UserError, match="the last video"):
        create_study(made.folder / "moving", made.folder / "still", tmp_path / "s", options, True)
    assert not (tmp_path / "s").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from lightx2v_sgmd.apps.study import creating

creating.write_spoiled = lambda video, target: os.kill(os.getpid(), signal.SIGKILL)
a, b, out = map(Path, sys.argv[1:])
creating.create_study(a, b, out, creating.StudyOptions(pairs=2, catch=1), quiet=True)
"""


@pytest.mark.slow
def test_what_a_killed_create_leaves_is_removed_by_the_next_one(
    made: MadeStudy, tmp_path: Path
) -> None:
    sides, out = (made.folder / "moving", made.folder / "still"), tmp_path / "s"
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, (*sides, out))], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(out.rglob("*.mp4"))) == 5 and not (out / "page").exists()
    study = create_study(*sides, out, StudyOptions(pairs=1, catch=1), quiet=True)
    assert sorted(path.name for path in out.iterdir()) == ["key.json", "page"]
    names = {name for pair in study.pairs for name in (pair.first, pair.second)}
    assert {path.name for path in out.rglob("*.mp4")} == names


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (StudyOptions(pairs=9), "--pairs: 9 are asked for, and 8 are there; use at most 8"),
        (StudyOptions(questions=("hands=Which?",)), "--catch 0"),
        (StudyOptions(names=("ours", "\udcff")), "--name-b: .* is no plain text"),
        (StudyOptions(names=("x" * 101, None)), "--name-a: .* of up to 100 characters"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    made: MadeStudy, tmp_path: Path, options: StudyOptions, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        create_study(made.folder / "moving", made.folder / "still", tmp_path / "s", options)
    assert not (tmp_path / "s").exists()


def test_more_pairs_than_a_study_can_have_are_refused(
    made: MadeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creating, "MOST_PAIRS", 5)
    sides = made.folder / "moving", made.folder / "still"
    with pytest.raises(UserError, match="6 are asked for, and a study has at most 5; use at most"):
        create_study(*sides, tmp_path / "s", StudyOptions(pairs=6))


def test_what_tells_the_sides_apart_is_said() -> None:
    a, b = Path("a"), Path("b")
    pictures = {a: Picture(32, 32, 8, 1.0, "h264"), b: Picture(32, 32, 16, 0.5, "hevc")}
    found = cautions([VideoPair("x", a, b)], pictures)
    assert [re.findall("in (frame rate|length|codec|size)", line) for line in found[:3]] == [
        ["frame rate"],
        ["length"],
        ["codec"],
    ]
    assert "not every browser plays hevc" in found[3]
    assert cautions([VideoPair("x", a, a)], pictures | {b: pictures[a]}) == []
