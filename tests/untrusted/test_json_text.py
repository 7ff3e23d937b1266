"""Logs of JSON lines are read within limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted import json_text
from lightx2v_sgmd.untrusted.json_text import read_log


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
