"""Which videos of a call are there, which are made again, and what ends a run."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.system.errors import UserError
from tests.students import generate_files

ROWS = """{"prompt": "a red circle", "seed": 7, "name": "red one"}
{"prompt": "a blue square", "num_frames": 5}

{"prompt": "a red circle moving left", "seed": 7, "height": 48, "width": 32}
{"prompt": "a blue square moving right", "name": "last.mp4"}
"""


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.slow
def test_a_file_of_requests_is_made_and_gone_on_with(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out"
    prompts.write_text(ROWS)
    made = generate_files(shared_student, prompts, out, seed=100, batch_size=4, quiet=True)
    names = ["red one", "0001_a_blue_square", "0002_a_red_circle_moving_left", "last"]
    assert [file.stem for file in made.files] == names and (made.skipped, made.failed) == (0, [])
    assert set(made.timings) == {"load", "text", "denoise", "decode", "write"}
    provenance = [json.loads(file.with_suffix(".json").read_text()) for file in made.files]
    assert [fact["seed"] for fact in provenance] == [7, 101, 7, 103]
    shapes = [read_video(file)[0].shape[:3] for file in made.files]
    assert shapes == [(9, 32, 32), (5, 32, 32), (9, 48, 32), (9, 32, 32)]

    before = stamps(out)
    (out / "last.mp4").unlink()  # as after a kill between the sidecar and its video
    for name in ("red one.mp4", "red one.json"):
        (out / name).unlink()
    again = generate_files(shared_student, prompts, out, seed=100, quiet=True)
    assert again.files == made.files and again.skipped == 2
    after = stamps(out)
    redone = {name for name in after if after[name] != before.get(name)}
    assert redone == {"last.mp4", "last.json", "red one.mp4", "red one.json"}

    # Another seed is another video; nothing to do loads nothing.
    assert generate_files(shared_student, prompts, out, seed=5, quiet=True).skipped == 2

    def loaded(*args: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("infer.parts.StudentParts._load_network", loaded)
    assert generate_files(shared_student, prompts, out, seed=5, quiet=True).skipped == 4


def test_a_full_disk_ends_the_run(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("infer.batch.sidecars.rename_new", full)
    with pytest.raises(UserError, match="cannot be written: no space left on the disk"):
        generate_files(shared_student, ["a", "a red", "a blue"], tmp_path / "o", quiet=True)
    assert list((tmp_path / "o").glob("*.mp4")) == []
    monkeypatch.undo()  # with room again, the same command goes on
    assert generate_files(shared_student, ["a", "a red"], tmp_path / "o", quiet=True).failed == []
