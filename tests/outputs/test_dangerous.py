"""Outputs at which a careless program deletes something: each is refused, and nothing is touched.

Every line of the table is a command as a user types it in a folder that has a teacher, a run, an
exported student and files of the user's own. It must end with exit code 2 and one line that says
why, before any work, with every file as it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightx2v_sgmd.cli.main import run as run_cli
from lightx2v_sgmd.outputs import locked_file, locked_folder, sync_tree
from lightx2v_sgmd.system.errors import UserError
from tests.outputs.dangerous import DISTILL, EVALUATE, GENERATE, TABLE, rehash
from tests.tiny import WEIGHTS, make_tiny_wan
from tests.weights.conftest import write_checkpoint
from weights import export, exporting, publishing

JOB = """
teacher: {path: teacher, guidance_scale: 3.0}
method: {name: sgmd, lambda: 0.1}
data: {prompts: prompts.txt}
video: {height: 32, width: 32, num_frames: 5}
train: {iterations: 2}
output: {dir: new_run}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files in the user's folder."""
    world = tmp_path_factory.mktemp("template") / "world"
    make_tiny_wan(world / "teacher")
    write_checkpoint(world / "run", world / "teacher", 20)
    export(world / "run", "diffusers", world / "student", dtype="fp32", quiet=True)
    (world / "job.yaml").write_text(JOB)
    (world / "prompts.txt").write_text("a red circle\na blue square\n")
    (world / "notes").mkdir()
    (world / "notes" / "thesis.txt").write_text("two years of work")
    return world


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "world"
    shutil.copytree(template, folder)
    for name in ("run/checkpoints/step_000020/job.yaml", "student/job.yaml"):
        path = folder / name
        path.write_text(path.read_text().replace(str(template), str(folder)))
    rehash(folder / "student")
    from tests.weights.conftest import write_manifest

    write_manifest(folder / "run" / "checkpoints" / "step_000020")
    monkeypatch.chdir(folder)
    return folder


def tree(folder: Path) -> dict[str, object]:
    """Everything below a folder: files by inode and content, links, folders."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = (path.stat().st_ino, path.read_bytes())
        else:
            found[name] = "folder"
    return found


@pytest.mark.parametrize(
    ("command", "prepare", "match"), TABLE, ids=[f"{i}: {row[0]}" for i, row in enumerate(TABLE)]
)
def test_a_dangerous_output_is_refused(
    world: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    prepare: Callable[[Path], None],
    match: str,
) -> None:
    prepare(world)
    before = tree(world.parent)
    code = run_cli([word.replace("\\n", "\n") for word in command.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2, line
    assert line.startswith("error: ") and len(line.replace(str(world), "")) < 300
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(line)
    assert tree(world.parent) == before


def test_the_table_is_long_enough() -> None:
    assert len({row[0] + row[2] for row in TABLE}) >= 50


LOCKS: list[tuple[str, Callable[[Path], object]]] = [
    ("export run --quiet --out new", lambda world: locked_file(world / "new", "export")),
    (f"{GENERATE} --prompt a --out a.mp4", lambda world: locked_file(world / "a.mp4", "generate")),
    (f"{GENERATE} --prompts prompts.txt --out v", lambda world: locked_folder(world / "v", "x")),
    (DISTILL.format("new_run"), lambda world: locked_folder(world / "new_run", "distill")),
    ("compare job.yaml --quiet --out cmp", lambda world: locked_folder(world / "cmp", "compare")),
    ("demo --quiet --out demo", lambda world: locked_folder(world / "demo", "demo")),
    (f"{EVALUATE} app", lambda world: locked_folder(world / "app", "evaluate")),
    (
        "embed job.yaml --quiet --set data.embeddings=cache",
        lambda world: locked_folder(world / "cache", "embed"),
    ),
]


@pytest.mark.parametrize(("command", "lock"), LOCKS, ids=[row[0] for row in LOCKS])
def test_the_second_of_two_is_told_who_is_there(
    world: Path, capsys: pytest.CaptureFixture[str], command: str, lock: Callable[[Path], object]
) -> None:
    with lock(world):  # type: ignore[attr-defined]
        before = tree(world.parent)
        assert run_cli(command.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "is in use by lightx2v-sgmd" in line and f"pid {os.getpid()} on " in line
        assert tree(world.parent) == before


@pytest.mark.parametrize("kind", ["new", "empty", "overwrite"])
def test_what_appears_during_an_export_is_not_replaced(
    world: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out = world / ("student" if kind == "overwrite" else "out")
    if kind == "empty":
        out.mkdir()
    before = tree(out)
    sync = sync_tree

    def late(folder: Path) -> None:
        sync(folder)
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("just in time")

    monkeypatch.setattr(exporting, "sync_tree", late)
    with pytest.raises(UserError, match=r"thesis\.txt appeared or changed there during the exp"):
        export(world / "run", "diffusers", out, dtype="fp32", overwrite=True, quiet=True)
    after = tree(out)
    assert after.pop("thesis.txt")[1] == b"just in time"  # type: ignore[index]
    assert after == before
    assert not [p.name for p in world.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("swaps", [True, False])
def test_what_appears_at_the_last_moment_is_not_replaced(
    world: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    """Between the last look and the rename, with and without a call that swaps names."""
    real, out = publishing.exchange, world / "student"  # type: ignore[attr-defined]
    before = tree(out)

    def late(first: Path, second: Path) -> bool:
        (out / "thesis.txt").write_text("just in time")
        monkeypatch.setattr(publishing, "exchange", real if swaps else lambda a, b: False)
        return swaps and real(first, second)

    monkeypatch.setattr(publishing, "exchange", late)
    with pytest.raises(UserError, match=r"thesis\.txt appeared or changed there during the exp"):
        export(world / "run", "diffusers", out, dtype="fp32", overwrite=True, quiet=True)
    after = tree(out)
    assert after.pop("thesis.txt")[1] == b"just in time"  # type: ignore[index]
    assert after == before
    assert not [p.name for p in world.iterdir() if p.name.startswith(".")]


def test_an_export_that_died_while_it_replaced_another_is_ended(world: Path) -> None:
    """Killed between the two renames of a file system that cannot swap names."""
    from lightx2v_sgmd.outputs.owner import here
    from weights.publishing import finish_replacing

    dead = f"{2**22 + 7}-1-{here().namespace}-0"
    before = tree(world / "student")
    (world / "student").rename(world / f".student.{dead}.old")
    finish_replacing(world / "student")
    assert tree(world / "student") == before
    shutil.copytree(world / "student", world / f".student.{dead}.old")
    finish_replacing(world / "student")
    assert not list(world.glob(".student*"))
    shutil.copytree(world / "student", world / f".student.{dead}.old")
    (world / f".student.{dead}.old" / "mine.txt").write_text("mine")
    finish_replacing(world / "student")
    assert (world / f".student.{dead}.old" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("change", ["weights", "prompts", "settings"])
def test_pairs_of_something_else_are_not_gone_on_with(
    world: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    command = ["job.yaml", "--out", "pairs", "--steps", "1", "--shard", "1", "--prompts"]
    assert run_cli(["collect-pairs", *command, "prompts.txt", "--count", "1"]) == 0
    if change == "weights":
        path = world / "teacher" / WEIGHTS
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # another file of the same size
        path.write_bytes(bytes(content))
    elif change == "prompts":
        (world / "prompts.txt").write_text("a green square\n")
    before = tree(world)
    count = "2" if change == "settings" else "1"
    assert run_cli(["collect-pairs", *command, "prompts.txt", "--count", count]) == 2
    assert "holds latents of other settings" in capsys.readouterr().err
    assert tree(world) == before


def test_latents_do_not_go_among_the_videos(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "clips").mkdir()
    (world / "clips" / "a.mp4").write_text("a")
    before = tree(world)
    for out, relation in (("clips", "is"), ("clips/latents", "lies in"), ("teacher", "is")):
        assert run_cli(["encode-videos", "clips", "--job", "job.yaml", "--out", out]) == 2
        assert f"{relation} " in capsys.readouterr().err
    assert tree(world) == before
