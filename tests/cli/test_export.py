"""The command ``export``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightx2v_sgmd.cli.main import run
from tests.cli.application import install


def test_export_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export = install(monkeypatch, "weights", "export", Path("student"))
    monkeypatch.setattr(sys.modules["weights"], "ExportError", RuntimeError, raising=False)
    assert run(["export", "runs/x", "--out", "student", "--no-ema", "--dtype", "fp32"]) == 0
    args, options = export.calls[0]
    assert args == (Path("runs/x"), "diffusers", Path("student"))
    assert options == {
        **{"dtype": "fp32", "ema": False, "rank": None, "energy": None},
        **{"max_shard_size": "5GB", "overwrite": False, "quiet": False},
        **{"push": None, "public": False, "names": None, "only": None, "relative_to": None},
    }
    assert capsys.readouterr().out == "student\n"
    options_of_push = ["--push", "me/x", "--public", "--overwrite", "--json"]
    assert run(["export", "runs/x", "--out", "student", *options_of_push]) == 0
    options = export.calls[1][1]
    assert (options["push"], options["public"], options["overwrite"]) == ("me/x", True, True)
    assert json.loads(capsys.readouterr().out) == {"weights": "student", "repository": "me/x"}
