"""Files that were written by us, and files that were not or have changed since."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.outputs import WrittenFiles
from lightx2v_sgmd.outputs import record as records
from lightx2v_sgmd.system.errors import UserError


def test_only_our_own_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match=r"report\.html would be replaced, but was not written by"):
        WrittenFiles(tmp_path).check(["metrics.json", "report.html"])
    with pytest.raises(UserError, match="report.html would be replaced"):
        WrittenFiles(tmp_path).write_text("report.html", "theirs")
    assert (tmp_path / "report.html").read_text() == "mine"
    WrittenFiles(tmp_path).write_text("metrics.json", "1")
    WrittenFiles(tmp_path).write_text("metrics.json", "2")  # another process, later
    assert (tmp_path / "metrics.json").read_text() == "2"
    (tmp_path / "metrics.json").write_text("2 and a note")
    with pytest.raises(UserError, match="has changed since"):
        WrittenFiles(tmp_path).write_text("metrics.json", "3")


def test_a_kill_between_note_and_file_leaves_a_file_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WrittenFiles(tmp_path).write_text("a.txt", "one")
    real = WrittenFiles._add
    notes: list[str] = []

    def note(self: WrittenFiles, name: str, hashes: list[str]) -> None:
        real(self, name, hashes)
        notes.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(WrittenFiles, "_add", note)
    with pytest.raises(KeyboardInterrupt):
        WrittenFiles(tmp_path).write_text("a.txt", "two")
    monkeypatch.undo()
    assert notes == ["a.txt"] and (tmp_path / "a.txt").read_text() == "one"
    WrittenFiles(tmp_path).write_text("a.txt", "three")
    assert (tmp_path / "a.txt").read_text() == "three"


@pytest.mark.parametrize(
    ("saved", "match"),
    [
        ("{", "is not as it was written; remove it"),
        ('{"format_version": 2, "sha256": {}}', "update lightx2v-sgmd"),
    ],
)
def test_a_record_that_cannot_be_used_stops(tmp_path: Path, saved: str, match: str) -> None:
    (tmp_path / records.NAME).write_text(saved)
    with pytest.raises(UserError, match=match):
        WrittenFiles(tmp_path)
    assert (tmp_path / records.NAME).read_text() == saved
