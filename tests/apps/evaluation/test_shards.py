"""Videos that several machines or processes make: each made once, and measured together."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.apps import evaluation
from lightx2v_sgmd.apps.evaluation import EvaluateOptions, evaluate, evaluate_shard, shards
from lightx2v_sgmd.apps.evaluation.shards import CALLS, Shard, ShardedCall, make_shards
from lightx2v_sgmd.system.errors import RunError, UserError
from tests.apps.evaluation.test_evaluate import forbidden
from tests.students import make_student
from tests.tiny import make_tiny_wan

OPTIONS = EvaluateOptions(
    metrics=("optflow", "brightness"), num_frames=5, height=16, width=16, steps=2, device="cpu"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, its teacher and three prompts."""
    made = tmp_path_factory.mktemp("shards")
    make_student(made / "student")
    make_tiny_wan(made / "teacher", seed=1)
    (made / "p.txt").write_text("a red circle\na blue square\na thing\n")
    return made


def measured(models: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    """The rows of an evaluation, without the files' names."""
    sources = (models / "student", models / "p.txt", out)
    done = evaluate(*sources, against=models / "teacher", options=OPTIONS, quiet=True, **options)
    rows: list[dict[str, Any]] = done.metrics["videos"]
    return [
        {s: {k: v for k, v in row[s].items() if k != "file"} for s in ("weights", "against")}
        for row in rows
    ]


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_shards_share_all_videos(count: int) -> None:
    parts = [Shard(number, count).range(10) for number in range(1, count + 1)]
    assert [index for part in parts for index in range(*part)] == list(range(10))
    assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/0", "a/b", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not K/N"):
        Shard.parse(text)


@pytest.mark.slow
def test_what_shards_made_is_measured_and_the_rest_is_made(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = (models / "student", models / "p.txt", tmp_path / "out", Shard(2, 2))
    evaluate_shard(*sources, against=models / "teacher", options=OPTIONS, quiet=True)
    for side in ("weights", "against"):
        assert [path.name for path in (tmp_path / "out/videos" / side).iterdir()] == ["00001-00003"]
    assert not (tmp_path / "out" / "metrics.json").exists()
    made: list[tuple[int, int]] = []
    make = evaluation._make

    def noted(plan: Any, side: str, first: int, end: int, *rest: Any) -> Any:
        made.append((first, end))
        return make(plan, side, first, end, *rest)

    monkeypatch.setattr(evaluation, "_make", noted)
    rows = measured(models, tmp_path / "out")
    assert made == [(1, 3), (0, 1)] * 2
    whole = measured(models, tmp_path / "whole")
    for row, expected in zip(rows, whole, strict=True):
        for side in row:
            assert row[side] == pytest.approx(expected[side], rel=1e-3)

    # However they are shared the next time, also with more seeds, none is made again.
    monkeypatch.setattr("infer.batch.generate_files.Student", forbidden)
    monkeypatch.setattr("lightx2v_sgmd.sampling.sampler.VideoSampler", forbidden)
    for out, shards_ in (
        ("out", (Shard(1, 1), Shard(1, 2))),
        ("whole", (Shard(1, 2), Shard(2, 2))),
    ):
        for shard in shards_:
            sources = (models / "student", models / "p.txt", tmp_path / out, shard)
            evaluate_shard(*sources, against=models / "teacher", options=OPTIONS, quiet=True)
    twice = (models / "student", models / "p.txt", tmp_path / "out", Shard(1, 2))
    more = replace(OPTIONS, seeds=2)
    evaluate_shard(*twice, against=models / "teacher", options=more, quiet=True)
    assert measured(models, tmp_path / "out") == rows


@pytest.mark.slow
def test_processes_make_the_videos_together(models: Path, tmp_path: Path) -> None:
    rows = measured(models, tmp_path / "out", nproc=2)
    for side in ("weights", "against"):
        names = sorted(path.name for path in (tmp_path / "out/videos" / side).iterdir())
        assert names == ["00000-00001", "00001-00003"]
    whole = measured(models, tmp_path / "whole")
    for row, expected in zip(rows, whole, strict=True):
        assert row["weights"] == pytest.approx(expected["weights"], rel=1e-3)


@pytest.mark.slow
def test_a_process_that_fails_says_why(models: Path, tmp_path: Path) -> None:
    call = ShardedCall(str(tmp_path / "none"), str(tmp_path / "out"), str(models / "p.txt"))
    with pytest.raises(UserError, match="--weights: .*/none .*folder of .mp4 files"):
        make_shards(call, OPTIONS, 1, 3, quiet=True)


def test_a_process_that_dies_is_said(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_WORKER", "this")  # prints a poem; it knows no arguments
    call = ShardedCall("a", str(tmp_path / "out"))
    make_shards(call, OPTIONS, 1, 3, quiet=True)
    monkeypatch.setattr(shards, "_WORKER", "no.such.module")
    with pytest.raises(RunError, match="ended with exit code 1: .*No module named 'no'"):
        make_shards(call, OPTIONS, 1, 3, quiet=True)


def test_a_log_gets_lines_of_what_processes_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first look finds no video, as with a large model."""
    made = iter([0, 0, 0, 2])
    monkeypatch.setattr(shards, "_made", lambda out: next(made, 2))
    monkeypatch.setattr(shards, "_POLL_S", 0.01)
    monkeypatch.setattr(shards, "_COUNT_S", 0.0)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    shards._follow([process], tmp_path, 3, quiet=False)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("videos, 1 processes 2/3") and last.startswith(
        "videos, 1 processes 3/3"
    )


def test_a_video_in_two_folders_is_counted_once(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for place in ("w/0001_a", "w/00000-00002/0001_a", "w/00001-00003/0000_a", "t/0001_a"):
        (videos / place).parent.mkdir(parents=True, exist_ok=True)
        (videos / place).with_suffix(".mp4").touch()
    (videos / "00002-00004").mkdir()
    (videos / "00002-00004" / "0000_b.mp4").touch()
    assert shards._made(tmp_path) == 3


def test_the_process_that_was_killed_is_named(tmp_path: Path) -> None:
    """The others were stopped because of it."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    commands = ["raise SystemExit(130)", code]
    processes = [subprocess.Popen([sys.executable, "-c", command]) for command in commands]
    for process in processes:
        process.wait()
    logs = [(tmp_path / str(index)).open("w+b") for index in range(2)]
    with pytest.raises(RunError, match="ended with exit code -9: it printed nothing"):
        shards._raise_first(processes, logs)
    for log in logs:
        log.close()


@pytest.mark.parametrize(
    ("named", "gpus"), [("3,5", ["3", "5"]), ("", []), ("-1", []), ("0,-1,1", ["0"])]
)
def test_the_gpus_that_are_visible(
    named: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert shards.visible_gpus() == gpus


def test_each_process_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    started: list[str] = []

    def start(module: str, arguments: Any, environment: Any, log: Any) -> Any:
        started.append(environment["CUDA_VISIBLE_DEVICES"])
        raise OSError("enough")

    monkeypatch.setattr(shards, "start_module", start)
    options = replace(OPTIONS, device=None)
    with pytest.raises(OSError, match="enough"):
        make_shards(ShardedCall("a", str(tmp_path)), options, 2, 3, quiet=True)
    assert started == ["3"]
    with pytest.raises(UserError, match="--nproc: 3 is more than the 2 GPUs .* --nproc 2"):
        make_shards(ShardedCall("a", str(tmp_path)), options, 3, 3, quiet=True)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_a_process_gets_every_option(tmp_path: Path) -> None:
    i3d = tmp_path / "i3d.pt"
    i3d.touch()
    options = EvaluateOptions(metrics=("fvd", "optflow"), i3d=i3d, seeds=2, guidance_scale=3.5)
    call = ShardedCall("w", "o", against="t")
    assert CALLS.validate_json(CALLS.dump_json((call, options))) == (call, options)


def test_folders_of_videos_have_no_shards(models: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for index in range(3):
        (tmp_path / "videos" / f"{index}.mp4").touch()
    sources = (tmp_path / "videos", models / "p.txt", tmp_path / "out", Shard(1, 2))
    with pytest.raises(UserError, match="--shard: is for making videos"):
        evaluate_shard(*sources, options=OPTIONS, quiet=True)
