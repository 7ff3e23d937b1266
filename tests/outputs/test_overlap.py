"""Outputs that are, hold or lie in what is read, under every disguise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightx2v_sgmd.outputs import check_new_folder, refuse_overlap, resolved
from lightx2v_sgmd.system.errors import UserError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "weights").write_text("w")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "chain").symlink_to(tmp_path / "link")
    os.link(folder / "weights", tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("out", "relation"),
    [
        ("home/run", "is"),
        ("home/run/", "is"),
        ("home/../home/./run", "is"),
        ("link", "is"),
        ("chain", "is"),
        ("home/run/new", "lies in"),
        ("home/run/checkpoints", "lies in"),
        ("link/new/deep", "lies in"),
        ("link/../run/new", "lies in"),
        ("home", "holds"),
        (".", "holds"),
        ("/", "holds"),
        ("home/run2", None),
        ("home/ru", None),
        ("new", None),
    ],
)
def test_folders(source: Path, out: str, relation: str | None) -> None:
    if relation is None:
        refuse_overlap(resolved(out), {"the source": source})
        return
    with pytest.raises(UserError, match=f"{relation} the source"):
        refuse_overlap(resolved(out), {"the source": source})
    with pytest.raises(UserError, match=f"{relation} the source"):
        refuse_overlap(resolved(out), {"the source": Path("chain")})


def test_files_that_are_one_file(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the LoRA"):
        refuse_overlap(resolved("hard"), {"the LoRA": source / "weights"})
    refuse_overlap(resolved("other"), {"the LoRA": source / "weights", "none": None})
    refuse_overlap(resolved("other"), {"a hub id": Path("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")})


@pytest.mark.parametrize("out", ["", "a\0b", "x" * 300, "a/" * 2500, "日" * 100])
def test_paths_that_no_file_system_takes(out: str) -> None:
    with pytest.raises(UserError, match=r"^--out: ") as caught:
        resolved(out)
    assert len(str(caught.value)) < 300


def test_folders_that_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is the folder that this command runs in"):
        check_new_folder(resolved("."))
    for root in ("/", "/proc"):
        with pytest.raises(UserError, match="is the root of a disk"):
            check_new_folder(resolved(root))
