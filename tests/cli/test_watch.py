"""The command ``watch``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.apps.watch import watching
from lightx2v_sgmd.cli.main import run


@pytest.mark.parametrize(
    ("words", "expected", "shown"),
    [
        ([], ("127.0.0.1", 8200, None), ("http://it\n", "Ctrl-C stops\n")),
        (["--quiet"], ("127.0.0.1", 8200, None), ("http://it\n", "")),
        (
            ["--host", "0.0.0.0", "--port", "9", "--token-file", "token", "--json"],
            ("0.0.0.0", 9, Path("token")),
            (json.dumps({"url": "http://it"}) + "\n", ""),
        ),
    ],
)
def test_options_are_passed_on_and_the_address_is_printed(
    words: list[str],
    expected: tuple[object, ...],
    shown: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[tuple[object, ...]] = []

    def watch(run: Path, host: str, port: int, token: Path | None, started: Any) -> None:
        calls.append((run, host, port, token))
        started("http://it")

    monkeypatch.setattr(watching, "watch", watch)
    assert run(["watch", "runs/x", *words]) == 0
    assert calls == [(Path("runs/x"), *expected)]
    assert capsys.readouterr() == shown
