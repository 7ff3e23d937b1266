"""The command ``demo``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightx2v_sgmd.cli.main import run
from tests.cli.application import install


def test_demo_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = SimpleNamespace(metrics={"seed": 4})
    demo = install(monkeypatch, "lightx2v_sgmd.apps.demo", "run_demo", result)
    assert run(["demo", "--out", "d", "--seed", "4", "--set", "train.iterations=9", "--json"]) == 0
    args, options = demo.calls[0]
    assert args == (Path("d"),)
    assert options == {"seed": 4, "quiet": False, "overrides": ["train.iterations=9"]}
    assert json.loads(capsys.readouterr().out) == {"seed": 4}
