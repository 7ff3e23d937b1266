"""Logs of JSON lines are read within limits, and what is wrong with a record is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted import json_text
from lightx2v_sgmd.untrusted.json_text import own_record, read_log, read_record


def test_a_log_gives_the_keys_that_are_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "rc": 0.5, "other": [1, 2]}\n{"step": 2}')
    assert read_log(log, ("step", "rc")) == [{"step": 1, "rc": 0.5}, {"step": 2}]
    for text in ('{"step": 1}\nnot JSON\n', "[1]\n", "x" * 200_001, "1" * 200_000 + "{}\n"):
        log.write_text(text)
        with pytest.raises(ValueError):
            read_log(log, ("step",))
    with pytest.raises(UserError, match="no such file"):
        read_log(tmp_path / "none", ("step",))


def test_a_log_is_read_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n' * 10)
    for name, most in (("LOG_BYTES", 100), ("LOG_LINES", 9)):
        with monkeypatch.context() as limited:
            limited.setattr(json_text, name, most)
            with pytest.raises(UserError, match=r"has more than the .* that are read; move it"):
                read_log(log, ("step",))
    assert len(read_log(log, ("step",))) == 10


def test_a_record_that_says_something_else_is_refused_with_a_remedy(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    for text in ("{", "[]", "{}", '{"step": null}', '{"step": 1e999}', '{"step": "x"}'):
        record.write_text(text)
        with pytest.raises(UserError, match=r"record\.json: is not as it was written; remove it$"):
            with own_record(record, "remove it"):
                int(read_record(record)["step"])
    with pytest.raises(
        UserError, match=r"none: cannot be read \(No such file or directory\); check"
    ):
        with own_record(tmp_path / "none", "remove it"):
            read_record(tmp_path / "none")
    with pytest.raises(UserError, match="^its own words$"), own_record(record, "remove it"):
        raise UserError("its own words")
