"""Files that appear whole, names that tell their writer, and what is left of dead ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightx2v_sgmd.outputs import writer
from lightx2v_sgmd.outputs.owner import here
from lightx2v_sgmd.outputs.writer import (
    appearing,
    clean_temporaries,
    exchange,
    open_log,
    remove_files,
    rename_new,
    set_aside,
    temporary_path,
    write_text,
)
from lightx2v_sgmd.system.errors import UserError

DIE = """
import os, sys
from pathlib import Path
from lightx2v_sgmd.outputs import temporary_path
out = Path(sys.argv[1])
folder = temporary_path(out); folder.mkdir(); (folder / "weights").write_text("half")
temporary_path(out, suffix=".mp4").write_text("half")
os._exit(9)
"""


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    with pytest.raises(RuntimeError), appearing(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
        raise RuntimeError
    assert path.read_text() == "one" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_what_has_the_name_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(FileExistsError), appearing(path, replace=False) as temporary:
        temporary.write_text("ours")
        path.write_text("theirs")  # appears meanwhile
    assert path.read_text() == "theirs" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("without", ["nothing", "renameat2", "links"])
def test_a_new_name_never_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError("no links here")

    if without != "nothing":
        monkeypatch.setattr(writer, "_renameat2_function", lambda: None)
    if without == "links":
        monkeypatch.setattr(os, "link", refuse)
    ours, theirs, free = tmp_path / "ours", tmp_path / "theirs", tmp_path / "free"
    ours.write_text("ours")
    theirs.write_text("theirs")
    with pytest.raises(FileExistsError):
        rename_new(ours, theirs)
    assert theirs.read_text() == "theirs" and ours.read_text() == "ours"
    rename_new(ours, free)
    assert free.read_text() == "ours" and not ours.exists()
    folder, taken = tmp_path / "folder", tmp_path / "taken"
    folder.mkdir()
    (folder / "x").write_text("ours")
    taken.mkdir()
    rename_new(folder, taken)  # an empty folder gives way
    taken.rename(folder)
    taken.mkdir()
    (taken / "y").write_text("theirs")
    with pytest.raises(OSError, match="not empty|exists"):
        rename_new(folder, taken)
    assert [p.name for p in taken.iterdir()] == ["y"]


def test_two_names_are_swapped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    if exchange(tmp_path / "a", tmp_path / "b"):
        assert (tmp_path / "b").is_dir() and (tmp_path / "a").read_text() == "b"


def test_what_dead_processes_left_goes_and_what_living_ones_write_stays(tmp_path: Path) -> None:
    out = tmp_path / "student"
    done = subprocess.run([sys.executable, "-c", DIE, str(out)], check=False)
    assert done.returncode == 9 and len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".student.123.new").write_text("somebody's")
    (tmp_path / "notes.1-2-3.new").write_text("somebody's")
    living = temporary_path(out)
    living.mkdir()
    assert clean_temporaries(tmp_path, "other") == []
    assert len(clean_temporaries(tmp_path, "student")) == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {living.name, ".student.123.new", "notes.1-2-3.new"}


def test_a_temporary_from_elsewhere_goes_when_it_is_old(tmp_path: Path) -> None:
    own = here()
    name = f".video.mp4.{own.pid}-{own.start}-{'0' * 12}-0.new.mp4"
    (tmp_path / name).write_text("half")
    assert clean_temporaries(tmp_path) == []
    long_ago = time.time() - writer.ELSEWHERE_S - 60
    os.utime(tmp_path / name, (long_ago, long_ago))
    assert clean_temporaries(tmp_path) == [tmp_path / name]


@pytest.mark.parametrize("name", ["x" * 255, "日" * 85, "a\nb", "ünï", ".hidden", "a.b.c"])
def test_names_that_fill_what_a_file_system_allows(tmp_path: Path, name: str) -> None:
    temporary = temporary_path(tmp_path / name, suffix=".mp4")
    temporary.write_text("half")
    found = list(writer.temporaries(tmp_path, name))
    assert [(path, owner.pid) for path, _, owner in found] == [(temporary, os.getpid())]
    write_text(tmp_path / name, "whole")


def test_only_named_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "state").mkdir(parents=True)
    for name in ("a", "state/b", "notes.txt"):
        (folder / name).write_text(name)
    assert remove_files(folder, ["a", "state/b", "gone"]) == ["notes.txt"]
    assert sorted(p.name for p in folder.rglob("*")) == ["notes.txt"]
    assert remove_files(folder, ["notes.txt"]) == [] and not folder.exists()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "folder"
    precious.mkdir()
    (precious / "x").write_text("x")
    folder.mkdir()
    (folder / "link").symlink_to(precious)
    assert remove_files(folder, []) == []  # a link to a folder is nobody's content
    assert (precious / "x").read_text() == "x"


def test_what_is_set_aside_replaces_nothing(tmp_path: Path) -> None:
    for name in ("a", "a.old1"):
        (tmp_path / name).write_text(name)
    assert set_aside(tmp_path / "a", lambda number: f"a.old{number}") == tmp_path / "a.old2"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "a.old1": "a.old1",
        "a.old2": "a",
    }


def test_a_clock_that_is_wrong_removes_no_temporary_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The age of a file is told by the clock that stamps files, not by this machine's."""
    (tmp_path / ".x.4711-1-000000000000-0.new").write_text("half")
    for wrong in (0.0, 2.0**33):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong)
        assert clean_temporaries(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [".x.4711-1-000000000000-0.new"]


def test_a_name_that_no_process_can_have_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    left = tmp_path / f".x.{'9' * 30}-1-{here().namespace}-0.new"
    left.write_text("somebody's")
    assert clean_temporaries(tmp_path) == [] and left.exists()


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    with open_log(tmp_path / "a.log") as file:
        file.write(b"one")
    with open_log(tmp_path / "a.log") as file:
        file.write(b"2")
    assert (tmp_path / "a.log").read_bytes() == b"2"
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "b.log").symlink_to("thesis.txt")
    with pytest.raises(UserError, match="is a link, which no log is"):
        open_log(tmp_path / "b.log")
    assert (tmp_path / "thesis.txt").read_text() == "mine"
