"""The command ``distill``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.system.resources import config_path
from tests.cli.application import install

SPRITES = str(config_path("sprites_sgmd.yaml"))


def test_distill_passes_job_and_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distill = install(monkeypatch, "distill", "distill", Path("runs/x"))
    settings = ["--set", "train.seed=7", "--set", "method.lambda=0.2"]
    assert run(["distill", SPRITES, *settings, "--resume", "never", "--nproc", "2", "-q"]) == 0
    ((job,), options) = distill.calls[0]
    assert (job.train.seed, job.method.lambda_) == (7, 0.2)
    assert options == {"resume": "never", "nproc": 2, "quiet": True}
    assert capsys.readouterr().out == "runs/x\n"


def test_distill_prints_json_from_the_first_rank_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "distill", "distill", Path("runs/x"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run(["distill", SPRITES, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "runs/x"}


def test_a_mistake_in_the_job_is_found_before_the_application_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distill", None)  # importing it would fail
    assert run(["distill", SPRITES, "--set", "train.sed=1", "--set", "schedule.shift=4"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: --set: train.sed: unknown key; did you mean train.seed?"
    assert second.startswith("error: --set: schedule.shift: 4 is no shift that engine")
