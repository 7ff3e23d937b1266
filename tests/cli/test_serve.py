"""The command ``serve``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infer.options import Options
from infer.serve import server
from infer.serve.options import ServeOptions
from lightx2v_sgmd.cli.main import run
from tests.cli.application import Application


def test_options_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Application(None)
    monkeypatch.setattr(server, "serve", serve)
    weights = ["--weights", "student", "--weights", "old=before/student"]
    address = ["--host", "0.0.0.0", "--port", "9", "--token-file", "token", "--data", "data"]
    queue = ["--queue-limit", "7", "--batch", "2", "--keep-hours", "1", "--keep-gib", "3"]
    devices = ["--nproc", "2", "--ray", "--replicas", "4", "--lora-folder", "loras"]
    engine = ["--dtype", "bf16", "--device", "cpu", "--text-cache", "none"]
    assert run(["serve", *weights, *address, *queue, *devices, *engine]) == 0
    (((named, settings, options, _), _),) = serve.calls
    assert named == {"student": Path("student"), "old": Path("before/student")}
    assert settings == ServeOptions(
        host="0.0.0.0",
        port=9,
        data=Path("data"),
        token_file=Path("token"),
        queue_limit=7,
        batch_size=2,
        keep_hours=1.0,
        keep_gib=3.0,
        lora_folder=Path("loras"),
        nproc=2,
        ray=True,
        replicas=4,
    )
    assert options == Options(dtype="bf16", device="cpu", text_cache=None)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_address_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    class Model:
        name = "student"

    def serve(named: Any, settings: ServeOptions, options: Options, started: Any) -> None:
        started("http://127.0.0.1:8000", (Model(),))

    monkeypatch.setattr(server, "serve", serve)
    assert run(["serve", "--weights", "student", *(["--json"] if as_json else [])]) == 0
    out, err = capsys.readouterr()
    url = "http://127.0.0.1:8000"
    if as_json:
        facts = {"url": url, "model": "student", "models": ["student"], "data": "serve"}
        assert json.loads(out) == facts and err == ""
    else:
        assert (out, err) == (f"{url}\n", "serving student; Ctrl-C stops\n")
