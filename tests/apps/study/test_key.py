"""The key: read as it was written, and refused when it is something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.study.key import read_key
from lightx2v_sgmd.system.errors import UserError
from tests.apps.study.conftest import CATCH, PAIRS, MadeStudy


def test_a_key_is_read_as_it_was_written(made: MadeStudy) -> None:
    key = read_key(made.folder / "study" / "key.json")
    assert key == made.key
    assert (len(key.judged), len(key.catch_trials)) == (PAIRS, CATCH)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 2}, "format_version"),
        ({"study": "../../etc"}, "study"),
        ({"extra": 1}, "extra"),
    ],
)
def test_another_file_is_refused(
    made: MadeStudy, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    content = json.loads(made.key.model_dump_json()) | change
    (tmp_path / "key.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{reason}.*name the key.json"):
        read_key(tmp_path / "key.json")


def test_a_video_name_that_leaves_the_folder_is_refused(made: MadeStudy, tmp_path: Path) -> None:
    content = json.loads(made.key.model_dump_json())
    content["pairs"][0]["first"] = "../../../etc/passwd"
    (tmp_path / "key.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="pairs.0.first"):
        read_key(tmp_path / "key.json")


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; name the key.json"):
        read_key(tmp_path / "key.json")
