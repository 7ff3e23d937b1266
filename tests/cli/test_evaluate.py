"""The command ``evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightx2v_sgmd.apps import evaluation, vbench
from lightx2v_sgmd.apps.evaluation import EvaluateOptions
from lightx2v_sgmd.apps.evaluation.shards import Shard
from lightx2v_sgmd.apps.vbench import VBenchOptions
from lightx2v_sgmd.cli.main import run
from tests.cli.application import Application

COMMAND = ["evaluate", "--weights", "student", "--out", "eval"]
PROMPTS = ["--prompts", "p.txt"]


def test_options_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    i3d, clip = tmp_path / "i3d.pt", tmp_path / "clip"
    clip.mkdir()
    for file in (i3d, clip / "config.json"):
        file.write_text("")
    evaluate = Application(SimpleNamespace(out=Path("eval"), metrics={"videos": []}))
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    scores = ["--metrics", "motion, fvd", "--i3d", str(i3d), "--clip", str(clip)]
    scores += ["--teacher", "wan", "--shown", "3"]
    videos = ["--seeds", "2", "--seed", "5", "--height", "32", "--width", "48"]
    videos += ["--num-frames", "9", "--device", "cpu"]
    teacher = ["--guidance-scale", "4", "--negative-prompt", "blur", "--steps", "20"]
    given = [*COMMAND, *PROMPTS, "--against", "sprites", *scores, *videos, *teacher]
    assert run([*given, "--nproc", "2", "--quiet", "--json"]) == 0
    ((args, options),) = evaluate.calls
    assert args == ("student", Path("p.txt"), Path("eval"))
    expected = EvaluateOptions(
        metrics=("motion", "fvd"),
        seeds=2,
        seed=5,
        teacher="wan",
        guidance_scale=4.0,
        negative_prompt="blur",
        steps=20,
        height=32,
        width=48,
        num_frames=9,
        i3d=i3d,
        clip=clip,
        shown=3,
        device="cpu",
    )
    assert options == {"against": "sprites", "options": expected, "nproc": 2, "quiet": True}
    assert json.loads(capsys.readouterr().out) == {"videos": []}


def test_a_shard_makes_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Application(None)
    monkeypatch.setattr(evaluation, "evaluate_shard", part)
    assert run([*COMMAND, *PROMPTS, "--shard", "2/4"]) == 0
    ((args, options),) = part.calls
    assert args == ("student", Path("p.txt"), Path("eval"), Shard(2, 4))
    assert options == {"against": None, "options": EvaluateOptions(), "quiet": False}


def test_vbench_gets_its_own_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = Application({"Total": 80.0})
    monkeypatch.setattr(vbench, "evaluate_vbench", evaluate)
    files = ["--augmented", "texts.txt", "--vbench-results", "r1", "--vbench-results", "r2"]
    more = ["--vbench-python", "vb/python", "--shard", "1/2", "--nproc", "3", "--seed", "7"]
    assert run([*COMMAND, "--vbench", "VBench", *files, *more, "--json"]) == 0
    ((args, _),) = evaluate.calls
    assert args[:2] == ("student", Path("eval"))
    results = (Path("r1"), Path("r2"))
    assert args[2] == VBenchOptions(
        Path("VBench"), Path("texts.txt"), Shard(1, 2), results, Path("vb/python"), 3
    )
    assert args[3:] == (EvaluateOptions(seed=7), False)
    assert json.loads(capsys.readouterr().out) == {"Total": 80.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--prompts: is missing; name a prompt file, or VBench's list by --vbench"),
        ([*PROMPTS, "--vbench-python", "python"], "--vbench-python: belongs to --vbench"),
        ([*PROMPTS, "--augmented", "texts.txt"], "--augmented: belongs to --vbench"),
        ([*PROMPTS, "--vbench-results", "r"], "--vbench-results: belongs to --vbench"),
        ([*PROMPTS, "--vbench", "VBench"], "--prompts: has no meaning with --vbench"),
        (["--seeds", "2", "--vbench", "VBench"], "--seeds: has no meaning with --vbench"),
        ([*PROMPTS, "--shard", "1/2", "--nproc", "2"], "--nproc: makes all videos"),
        ([*PROMPTS, "--videoalign", "nowhere"], "--videoalign: nowhere has no inference.py"),
        ([*PROMPTS, "--videoalign-python", "python"], "--videoalign-python: has no meaning"),
        ([*PROMPTS, "--shard", "3/2"], "--shard: '3/2' is not K/N with K from 1 to N"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMAND, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message}") and err.count("\n") == 1
