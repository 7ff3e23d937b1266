"""The command ``replay-failure``; the replay is tested in ``tests/distill/running``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.running import failures
from lightx2v_sgmd.cli.main import run
from tests.cli.application import Application

COMMAND = ["replay-failure", "run/failed/step_000012"]


def test_a_failure_that_is_there_again_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Again:
        """Returns an error, where an ``Application`` would raise it."""

        def __call__(self, folder: Path, launched: bool) -> Exception:
            assert (folder, launched) == (Path(COMMAND[1]), False)
            return ValueError("step 12: fisher is not finite")

    monkeypatch.setattr(failures, "replay", Again())
    assert run(COMMAND) == 1
    assert capsys.readouterr().out == "step 12: fisher is not finite\n"
    assert run([*COMMAND, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    problem = "step 12: fisher is not finite"
    assert said == {"state": COMMAND[1], "finite": False, "problem": problem}


def test_a_failure_that_is_gone_is_said_by_the_first_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replay = Application(None)
    monkeypatch.setattr(failures, "replay", replay)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run(COMMAND) == 0
    assert capsys.readouterr().out == f"{COMMAND[1]}: everything is finite now\n"
    assert replay.calls == [((Path(COMMAND[1]),), {"launched": True})] * 2
