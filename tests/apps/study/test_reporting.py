"""The report's command: from files of votes to the table."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lightx2v_sgmd.apps.study.reporting import read_votes, report
from lightx2v_sgmd.apps.study.store import VoteStore
from lightx2v_sgmd.cli import main
from lightx2v_sgmd.system.errors import UserError
from tests.apps.study.conftest import MadeStudy, submission_of

A, B = {"overall": "a"}, {"overall": "b"}


def test_a_later_submission_of_a_rater_replaces_the_earlier_one(
    made: MadeStudy, tmp_path: Path
) -> None:
    with closing(VoteStore(tmp_path / "votes.sqlite")) as store:
        for rater, choices in (("anna", B), ("ben", A), ("anna", A)):
            store.add(submission_of(made.key, rater, choices))
    (tmp_path / "carl.json").write_text(submission_of(made.key, "carl", B).model_dump_json())
    files = [tmp_path / "votes.sqlite", tmp_path / "carl.json"]
    submissions, replaced = read_votes(files, made.key)
    assert [submission.rater for submission in submissions] == ["anna", "ben", "carl"]
    assert replaced == 1
    found, _ = report(files, made.folder / "study" / "key.json")
    assert found["questions"]["overall"]["win"]["mean"] == pytest.approx(2 / 3)


def test_the_command_finds_the_key_beside_the_votes_and_writes_a_page(
    made: MadeStudy, tmp_path: Path
) -> None:
    (tmp_path / "key.json").write_bytes((made.folder / "study" / "key.json").read_bytes())
    votes, out = tmp_path / "anna.json", tmp_path / "out"
    votes.write_text(submission_of(made.key, "anna", A).model_dump_json())
    result = CliRunner().invoke(main.app, ["study", "report", str(votes), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert re.search(r"Overall preference +100 % \[100, 100\]", result.stdout)
    assert json.loads((out / "results.json").read_text())["names"] == ["moving", "still"]
    assert "Overall preference" in (out / "report.html").read_text()


def test_what_cannot_be_read_is_refused(made: MadeStudy, tmp_path: Path) -> None:
    key = made.folder / "study" / "key.json"
    with pytest.raises(UserError, match="--key: .* does not exist"):
        report([tmp_path / "votes.json"])
    with pytest.raises(UserError, match="does not exist; name the files"):
        report([tmp_path / "votes.json"], key)
    (tmp_path / "votes.json").write_text("{}")
    with pytest.raises(UserError, match="Field required; name the votes of the study"):
        report([tmp_path / "votes.json"], key)
    with closing(VoteStore(tmp_path / "votes.sqlite")):
        pass
    with pytest.raises(UserError, match="holds no votes yet"):
        report([tmp_path / "votes.sqlite"], key)
    (tmp_path / "votes.json").write_text(submission_of(made.key, "anna", A).model_dump_json())
    with pytest.raises(UserError, match="lies in the page"):
        report([tmp_path / "votes.json"], key, out=made.page / "result")


def test_names_that_a_terminal_would_obey_are_escaped(made: MadeStudy, tmp_path: Path) -> None:
    key = made.key.model_copy(update={"names": ("\x1b[31mred", "a\nb")})
    (tmp_path / "key.json").write_text(key.model_dump_json())
    (tmp_path / "votes.json").write_text(submission_of(key, "anna", A).model_dump_json())
    _, text = report([tmp_path / "votes.json"])
    assert all(line.isprintable() for line in text.splitlines())
    assert "\\x1b[31mred better" in text and "a\\nb better" in text


def test_an_output_is_looked_at_before_votes_are_counted(
    made: MadeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "votes.json").write_text(submission_of(made.key, "anna", A).model_dump_json())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("mine")
    monkeypatch.setattr("lightx2v_sgmd.apps.study.reporting.summarise", None)
    key = made.folder / "study" / "key.json"
    with pytest.raises(UserError, match=r"results\.json would be replaced"):
        report([tmp_path / "votes.json"], key, out=tmp_path / "out")
    assert (tmp_path / "out" / "results.json").read_text() == "mine"
