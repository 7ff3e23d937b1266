"""The command ``compare``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightx2v_sgmd.apps import comparison
from lightx2v_sgmd.apps.comparison.plan import Settings
from lightx2v_sgmd.cli.main import run
from tests.cli.application import Application


def test_options_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.md").write_text("| a table |\n")
    compare = Application(SimpleNamespace(out=tmp_path, results={"rows": 2}))
    monkeypatch.setattr(comparison, "compare", compare)
    command = ["compare", "job.yaml", "--out", str(tmp_path), "--methods", "sgmd,dmd2"]
    rows = ["--seeds", "3", "--set", "train.seed=1", "--method-set", "dmd2:train.seed=2"]
    rows += ["--sweep", "method.lambda=0.1,0.2", "--every", "5"]
    measured = ["--prompts", "7", "--curve-prompts", "4", "--evaluation-prompts", "p.txt"]
    measured += ["--teacher-solver", "euler", "--compute", "seconds"]
    machine = ["--workers", "2", "--nproc", "4", "--report-only", "--quiet"]
    assert run([*command, *rows, *measured, *machine]) == 0
    assert capsys.readouterr().out == f"| a table |\n\n{tmp_path / 'report.html'}\n"
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 2}
    (args, options), (_, usual) = compare.calls
    assert args == (Path("job.yaml"), tmp_path)
    assert options == {
        "methods": ["sgmd", "dmd2"],
        "seeds": 3,
        "overrides": ["train.seed=1"],
        "method_overrides": ["dmd2:train.seed=2"],
        "sweep": "method.lambda=0.1,0.2",
        "settings": Settings(prompts=7, curve_prompts=4, evaluation="p.txt", solver="euler"),
        "every": 5,
        "workers": 2,
        "nproc": 4,
        "compute": "seconds",
        "report_only": True,
        "quiet": True,
    }
    assert usual["settings"] == Settings() and usual["compute"] == "forwards"


@pytest.mark.parametrize("code", [1, 2])
def test_runs_that_failed_decide_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    failed = comparison.RunsFailedError("1 of 2 runs failed:\ndmd2", code)
    monkeypatch.setattr(comparison, "compare", Application(failed))
    assert run(["compare", "job.yaml", "--out", "out"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: 1 of 2 runs failed:") and err.count("\n") == 1
