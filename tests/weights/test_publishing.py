"""An export leaves nothing half written on the disk, and replaces nothing of the user's."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.files.tensors import safetensors_writer
from lightx2v_sgmd.outputs import sync_tree
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WEIGHTS
from tests.weights.conftest import do_export, flip_a_byte
from weights import ExportError, exporting, publishing
from weights.publishing import listing


def test_an_output_that_is_taken_is_kept(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds mine.txt and was not written by export"):
            do_export(run, out, overwrite=overwrite)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "student", "teacher"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        do_export(run, tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (do_export(run, empty) / WEIGHTS).exists()
    with pytest.raises(UserError, match="is not empty; choose another folder, or add --overwrite"):
        do_export(run, empty)
    before = (empty / WEIGHTS).stat().st_ino
    do_export(run, empty, overwrite=True)
    assert (empty / WEIGHTS).stat().st_ino != before


@pytest.mark.parametrize("where", ["save", "copy", "rename"])
@pytest.mark.parametrize("taken", [False, True])
def test_nothing_half_written_on_a_full_disk(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, taken: bool
) -> None:
    out = tmp_path / "student"
    if taken:
        do_export(run, out)
    before = listing(out)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "save":
        monkeypatch.setattr(safetensors_writer.TensorFile, "write", full)
    elif where == "copy":
        monkeypatch.setattr(shutil, "copytree", full)
    else:
        monkeypatch.setattr(publishing, "rename_new", full)
        monkeypatch.setattr(publishing, "exchange", full)
    with pytest.raises(UserError, match="student: cannot be written: .*No space left") as caught:
        do_export(run, out, overwrite=True)
    assert "\n" not in str(caught.value)
    left = ["run", "student", "teacher"] if taken else ["run", "teacher"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    assert listing(out) == before


def test_too_little_space_is_found_beforehand(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="needs 0.00 GiB and the disk has 0.00 GiB left"):
        do_export(run, tmp_path / "new" / "student")
    assert not (tmp_path / "new").exists()


def test_an_export_that_went_wrong_does_not_appear(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sync_tree

    def sync(folder: Path) -> None:
        flip_a_byte(folder / WEIGHTS)
        real(folder)

    monkeypatch.setattr(exporting, "sync_tree", sync)
    with monkeypatch.context() as unbroken:
        unbroken.setattr(exporting, "sync_tree", real)
        do_export(run, tmp_path / "student")
    before = listing(tmp_path / "student")
    with pytest.raises(ExportError, match=r"has changed .* has other values.*student.failed$"):
        do_export(run, tmp_path / "student", overwrite=True)
    # What was written stays, to be looked at, under a name that nobody takes for an export.
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "run",
        "student",
        "student.failed",
        "teacher",
    ]
    assert listing(tmp_path / "student") == before
    assert (tmp_path / "student.failed" / WEIGHTS).is_file()
    with pytest.raises(ExportError, match="student.failed2$"):
        do_export(run, tmp_path / "student", overwrite=True)
