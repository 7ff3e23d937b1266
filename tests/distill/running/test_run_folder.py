"""Resuming never deletes, overwrites, or takes for damaged what it cannot read."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill import distill
from distill.running.resuming import choose_checkpoint
from distill.running.run_folder import SUPERSEDED, check_own, repair_log
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import locked_folder
from lightx2v_sgmd.system.errors import UserError
from tests.files.test_checkpoint import flip, write
from tests.training import make_job


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints and a log."""
    folder = tmp_path / "run"
    for step in (1, 2):
        write(folder, step)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    return folder


def refused(run: Path, match: str) -> None:
    """Resuming stops, says why in one line, and changes nothing."""
    before = content(run)
    with pytest.raises(UserError, match=match) as caught:
        choose_checkpoint("auto", run, print)
    assert "\n" not in str(caught.value)
    assert content(run) == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM])
@pytest.mark.parametrize("name", ["manifest.json", "student.safetensors"])
def test_what_cannot_be_read_just_now_is_not_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    real = os.open

    def failing(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).name == name and Path(path).parent.name == "step_000002":
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", failing)
    before = sorted(p.name for p in (run / "checkpoints").iterdir())
    with pytest.raises(UserError, match="cannot be read just now .*nothing was changed"):
        choose_checkpoint("auto", run, print)
    with pytest.raises(UserError, match="cannot be read just now"):
        store.find_checkpoint(run)  # nor does export take the one before it
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == before


def test_a_folder_that_cannot_be_listed_is_not_empty(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", failing)
    with pytest.raises(UserError, match="checkpoints: cannot be read just now"):
        choose_checkpoint("auto", run, print)


def test_a_disk_that_is_not_mounted(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere" / "disk")
    refused(run, "leads to .* which is not there; mount the disk")


def test_a_checkpoint_on_a_disk_that_is_not_mounted(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints" / "step_000002").rename(tmp_path / "step_000002")
    (run / "checkpoints" / "step_000002").symlink_to(tmp_path / "elsewhere")
    refused(run, "step_000002: cannot be read just now .its link leads nowhere")


def test_a_newer_version_is_not_damage(run: Path) -> None:
    manifest = run / "checkpoints" / "step_000002" / "manifest.json"
    saved = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(saved | {"format_version": 2, "files": ["new", "ways"]}))
    refused(run, "a newer lightx2v-sgmd wrote it .*update lightx2v-sgmd")


def test_nothing_is_set_aside_when_nothing_is_whole(run: Path) -> None:
    for folder in store.checkpoints(run):
        flip(folder / "student.safetensors")
    refused(run, "step_000002.*there is no complete checkpoint before it, and nothing was changed")


def test_what_was_set_aside_before_stays(run: Path) -> None:
    newest = store.checkpoints(run)[0]
    shutil.copytree(newest, newest.with_name("step_000002.damaged"))
    (newest.with_name("step_000002.damaged") / "notes.txt").write_text("mine")
    flip(newest / "student.safetensors")
    assert choose_checkpoint("auto", run, lambda said: None) == store.checkpoints(run)[0]
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["step_000001", "step_000002.damaged", "step_000002.damaged2"]
    assert (run / "checkpoints" / "step_000002.damaged" / "notes.txt").read_text() == "mine"


def test_a_manifest_cannot_name_files_elsewhere(run: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("p")
    manifest = run / "checkpoints" / "step_000001" / "manifest.json"
    saved = json.loads(manifest.read_text())
    saved["files"]["../../../precious"] = {"size": 1, "sha256": "0" * 64}
    manifest.write_text(json.dumps(saved))
    with pytest.raises(store.DamagedError):
        store.verify(manifest.parent)
    store.prune(run, 1)
    assert (tmp_path / "precious").exists()


def test_pruning_leaves_what_is_not_ours(run: Path, tmp_path: Path) -> None:
    old = run / "checkpoints" / "step_000001"
    (old / "notes.txt").write_text("mine")
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "student.safetensors").write_text("w")
    (run / "checkpoints" / "step_000000").symlink_to(tmp_path / "big")
    assert store.prune(run, 1) == [old, run / "checkpoints" / "step_000000"]
    assert (old / "student.safetensors").exists() and (tmp_path / "big").exists()
    (run / "checkpoints" / "step_000000").unlink()
    (old / "notes.txt").unlink()
    assert store.prune(run, 1) == [] and not old.exists()


def test_a_half_written_checkpoint_goes_and_foreign_files_in_it_stay(run: Path) -> None:
    partial = run / "checkpoints" / ".step_000003.partial"
    (partial / "state").mkdir(parents=True)
    for name in ("student.safetensors", "state/student.00000-of-00001.safetensors", "notes.txt"):
        (partial / name).write_text("half")
    said: list[str] = []
    choose_checkpoint("auto", run, said.append)
    assert [p.name for p in partial.iterdir()] == ["notes.txt"]
    assert said == [f"{partial}/notes.txt: is not part of a checkpoint and was not removed"]


@pytest.mark.parametrize(
    "tail", [b'{"step": 3, "fi', b"\xff\xfe\x00", b"\x00" * 4096, b"", b"[1]\n"]
)
def test_a_log_is_repaired_from_its_last_whole_line(run: Path, tail: bytes) -> None:
    log = run / "metrics.jsonl"
    with log.open("ab") as file:
        file.write(tail)
    repair_log(run, 2)
    assert log.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    repair_log(run, 1)
    assert log.read_bytes() == b'{"step": 1}\n'
    lost = (run / SUPERSEDED).read_bytes()
    assert b'{"step": 2}\n' in lost and tail.strip(b"\n") in lost  # nothing is thrown away
    repair_log(run, 0)
    assert log.read_bytes() == b"" and b'{"step": 1}\n' in (run / SUPERSEDED).read_bytes()


def test_a_log_of_any_size_is_repaired_line_by_line(
    run: Path,
) -> None:
    log = run / "metrics.jsonl"
    endless = b"x" * 450_000 + b'{"step": 1}\n'  # a piece of it must not pass for a line
    later = b"".join(b'{"step": %d}\n' % step for step in range(3, 700))
    log.write_bytes(b'{"step": 1}\n' + endless + b'{"step": 2}\n' + later)
    repair_log(run, 2)
    assert log.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert (run / SUPERSEDED).read_bytes() == endless + later


def test_a_whole_last_line_without_its_end_is_kept(run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}')
    repair_log(run, 2)
    assert (run / "metrics.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("name", ["job.yaml", "environment.json", "metrics.jsonl", "samples"])
def test_somebodys_folder_is_no_run(tmp_path: Path, tiny_teacher: Path, name: str) -> None:
    job = make_job(tiny_teacher, tmp_path)
    job.output.dir.mkdir()
    (job.output.dir / name).write_text("mine")
    with pytest.raises(UserError, match=f"contains {name}, but it is not a training run"):
        distill(job, quiet=True)
    assert content(job.output.dir) == {name: b"mine"}


def test_a_run_of_a_version_without_a_record_is_a_run(tmp_path: Path) -> None:
    environment = {"python": "3", "packages": {}, "strategy": "local", "processes": 1}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    (tmp_path / "job.yaml").write_text("x: 1")
    check_own(tmp_path)


@pytest.fixture(scope="module")
def trained(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = make_job(tiny_teacher, tmp_path_factory.mktemp("trained"), "train.iterations=1")
    distill(job, quiet=True)
    return job


@pytest.mark.slow
def test_other_files_in_a_run_folder_and_an_edited_job_are_kept(
    trained: Job, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.output.dir, run)
    (run / "slurm-17.out").write_text("mine")
    edited = (run / "job.yaml").read_text() + "# tried on Monday\n"
    (run / "job.yaml").write_text(edited)
    from lightx2v_sgmd.job.loading import load_job

    distill(load_job(run / "job.yaml", [f"output.dir={run}", "train.iterations=2"]), quiet=True)
    assert (run / "slurm-17.out").read_text() == "mine"
    assert (run / "job.edited1.yaml").read_text() == edited
    assert store.step_of(store.checkpoints(run)[0]) == 2
    assert not list(run.glob(".*.lock")) and not list(run.glob(".*.new"))


def test_two_runs_in_one_folder(trained: Job) -> None:
    before = content(trained.output.dir)
    with locked_folder(trained.output.dir, "distill", quiet=True):
        with pytest.raises(UserError, match=r"is in use by lightx2v-sgmd distill \(pid \d+ on "):
            distill(trained, quiet=True)
    assert content(trained.output.dir) == before


@pytest.mark.parametrize(
    ("out", "relation"), [("{teacher}", "is"), ("{teacher}/run", "lies in"), ("{parent}", "holds")]
)
def test_a_run_does_not_go_into_its_teacher(
    tiny_teacher: Path, tmp_path: Path, out: str, relation: str
) -> None:
    place = out.format(teacher=tiny_teacher, parent=tiny_teacher.parent)
    job = make_job(tiny_teacher, tmp_path, f"output.dir={place}")
    before = content(tiny_teacher)
    with pytest.raises(UserError, match=f"output.dir: .* {relation} teacher.path"):
        distill(job, quiet=True)
    assert content(tiny_teacher) == before
