"""Result files of the vbench package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.apps.vbench.results import find_results, read_results
from lightx2v_sgmd.system.errors import UserError


def write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}_eval_results.json"
    file.write_text(json.dumps(content))
    return file


def entry(score: Any, count: int = 2) -> Any:
    return [score, [{"video_path": f"v/{i}.mp4", "video_results": score} for i in range(count)]]


def test_scores_are_read_from_all_files_of_a_folder(tmp_path: Path) -> None:
    first = write(tmp_path / "a", "x", {"scene": entry(0.5, 3), "color": entry(1)})
    second = write(tmp_path / "b", "y", {"subject_consistency": entry(0.97)})
    (tmp_path / "x_full_info.json").write_text("[]")
    files = find_results([tmp_path])
    assert files == [first, second]
    found = read_results(files)
    assert [(name, score.value, score.videos) for name, score in found.items()] == [
        ("subject_consistency", 0.97, 2),
        ("color", 1.0, 2),
        ("scene", 0.5, 3),
    ]
    assert find_results([first]) == [first]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"scene": entry(61.3)}, "divide percents by 100"),
        ({"scene": entry(True)}, "no number"),
        ({"scene": []}, "no number"),
        ({"scene": entry(None)}, "no number"),
        ({"camera_motion": entry(0.5)}, "not a dimension of VBench's 16"),
        ([1], "is not a JSON object"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_results([write(tmp_path, "x", content)])


def test_a_dimension_in_two_files_is_refused(tmp_path: Path) -> None:
    files = [write(tmp_path, name, {"scene": entry(0.5)}) for name in "xy"]
    with pytest.raises(UserError, match="has scene, and so has"):
        read_results(files)
    with pytest.raises(UserError, match="has no .*_eval_results.json"):
        find_results([tmp_path / "none"])
