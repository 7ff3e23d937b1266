"""Videos that fail or are cancelled, beside those that are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infer import Cancelled, SomeFailed, Student
from lightx2v_sgmd.files.video import read_video
from tests.students import generate, generate_files


def test_one_failure_does_not_stop_the_rest(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Student.denoise

    def denoise(self: Student, rows: Any, seeds: Any, size: Any, on_step: Any = None) -> Any:
        if 11 in seeds:
            raise RuntimeError("the seed is cursed\nand more")
        latents = real(self, rows, seeds, size, on_step)
        return latents * float("nan") if 13 in seeds else latents

    monkeypatch.setattr(Student, "denoise", denoise)
    made = generate_files(
        shared_student, ["a", "a red", "a blue", "a square"], tmp_path / "o", seed=10, quiet=True
    )
    assert [file.name for file in made.files] == ["0000_a.mp4", "0002_a_blue.mp4"]
    assert dict(made.failed) == {
        "0001_a_red": "the seed is cursed",
        "0003_a_square": "the network gave values that are not finite",
    }
    assert all(is_whole_video(file) for file in made.files)
    assert len(list((tmp_path / "o").iterdir())) == 4
    with pytest.raises(SomeFailed, match="2 videos failed; the first, 0001_a_red: the seed"):
        generate(shared_student, ["a", "a red", "a blue", "a square"], tmp_path / "o", seed=10)


def is_whole_video(file: Path) -> bool:
    return len(read_video(file)[0]) == 9


def test_cancelling_keeps_what_is_whole(shared_student: Path, tmp_path: Path) -> None:
    asked = [0]

    def cancel() -> bool:
        asked[0] += 1
        return asked[0] > 10  # 4 steps and 3 chunks of frames for each video

    with pytest.raises(Cancelled):
        generate_files(
            shared_student, ["a", "a red"], tmp_path, batch_size=1, cancel=cancel, quiet=True
        )
    assert {path.name for path in tmp_path.iterdir()} == {"0000_a.mp4", "0000_a.json"}
