"""The commands ``study create``, ``study collect`` and ``study report``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightx2v_sgmd.apps.study import collecting, creating, reporting
from lightx2v_sgmd.apps.study.collecting import CollectOptions
from lightx2v_sgmd.apps.study.creating import StudyOptions
from lightx2v_sgmd.cli.main import run
from tests.cli.application import Application

CREATE = ["study", "create", "--a", "sgmd", "--b", "dmd2", "--out", "new"]


def test_create_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = SimpleNamespace(study="1f", judged=[1, 2, 3], catch_trials=[4])
    create = Application(key)
    monkeypatch.setattr(creating, "create_study", create)
    questions = ["--question", "motion", "--question", "hands=Which video has better hands?"]
    names = ["--name-a", "ours", "--name-b", "theirs", "--prompts", "p.txt"]
    drawn = ["--pairs", "3", "--catch", "1", "--seed", "5"]
    assert run([*CREATE, *questions, *names, *drawn, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        **{"study": "1f", "page": "new/page/index.html", "key": "new/key.json"},
        **{"pairs": 3, "catch_trials": 1},
    }
    assert run(CREATE) == 0
    out, err = capsys.readouterr()
    assert out == "new/page/index.html\n"
    assert err.startswith("3 pairs and 1 catch trials; collect votes with: ")
    (given, _), (usual, _) = create.calls
    assert given[:3] == (Path("sgmd"), Path("dmd2"), Path("new"))
    asked = ("motion", "hands=Which video has better hands?")
    expected = StudyOptions(Path("p.txt"), asked, ("ours", "theirs"), pairs=3, catch=1, seed=5)
    assert given[3:] == (expected, True) and usual[3:] == (StudyOptions(), False)


def test_collect_passes_options_on_and_prints_the_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Path, CollectOptions]] = []

    def collect(study: Path, options: CollectOptions, started: Any) -> None:
        calls.append((study, options))
        started("http://it", Path("votes.sqlite"))

    monkeypatch.setattr(collecting, "collect", collect)
    address = [
        "--host",
        "0.0.0.0",
        "--port",
        "9",
        "--word",
        "secret-word-of-raters",
        "--votes",
        "v.sqlite",
    ]
    assert run(["study", "collect", "new", *address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"url": "http://it", "votes": "votes.sqlite"}
    assert run(["study", "collect", "new"]) == 0
    assert capsys.readouterr() == ("http://it\n", "votes go to votes.sqlite; Ctrl-C stops\n")
    given = CollectOptions(Path("v.sqlite"), "0.0.0.0", 9, "secret-word-of-raters")
    assert calls == [(Path("new"), given), (Path("new"), CollectOptions())]


def test_report_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Application(({"raters": 2}, "two raters"))
    monkeypatch.setattr(reporting, "report", report)
    more = ["--key", "key.json", "--catch-errors", "1", "--out", "result", "--quiet"]
    assert run(["study", "report", "a.json", "b.json", *more]) == 0
    assert capsys.readouterr().out == "two raters\n\nresult/report.html\n"
    assert run(["study", "report", "a.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"raters": 2}
    (args, options), _ = report.calls
    assert args == ([Path("a.json"), Path("b.json")], Path("key.json"))
    assert options == {"catch_errors": 1, "out": Path("result"), "quiet": True}
