"""The command ``doctor``."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lightx2v_sgmd.cli.doctor import checks
from lightx2v_sgmd.cli.main import run
from tests.cli.application import Application


@pytest.mark.slow
def test_it_never_imports_deepspeed() -> None:
    code = (
        "import sys; from lightx2v_sgmd.cli.doctor import checks; checks.run(); "
        "sys.exit('deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


def test_doctor_prints_text_or_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = SimpleNamespace(text=lambda: "all is well", to_dict=lambda: {"ok": True})
    fake = Application(report)
    monkeypatch.setattr(checks, "run", fake)
    assert (run(["doctor"]), run(["doctor", "--json"])) == (0, 0)
    assert len(fake.calls) == 2
    text, rest = capsys.readouterr().out.split("\n", 1)
    assert (text, json.loads(rest)) == ("all is well", {"ok": True})
