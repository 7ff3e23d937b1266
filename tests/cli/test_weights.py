"""The command ``weights``."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.cli.main import run
from tests.cli.application import install


def test_weights_push_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push = install(monkeypatch, "weights", "push", "https://hub/me/x")
    assert run(["weights", "push", "student", "me/x", "--quiet"]) == 0
    options = {"private": True, "replace": False, "quiet": True}
    assert push.calls == [((Path("student"), "me/x"), options)]
    assert capsys.readouterr().out == "https://hub/me/x\n"
