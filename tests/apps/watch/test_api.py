"""The server's answers: what it gives, what it refuses, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from lightx2v_sgmd.apps.watch.api import make_app
from lightx2v_sgmd.apps.watch.reading import WatchedRun
from lightx2v_sgmd.apps.watch.watching import watch
from lightx2v_sgmd.system.errors import UserError


def client(run: Path, token: str | None = None, host: str = "127.0.0.1") -> Any:
    return TestClient(make_app(WatchedRun.open(run), token, host), base_url="http://127.0.0.1")


def test_it_gives_the_page_the_state_and_the_videos(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    asked = client(run)
    page = asked.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert asked.get("/run").json()["step"] == 3
    video = asked.get("/samples/step_000002/01.mp4")
    assert video.content == (run / "samples" / "step_000002" / "01.mp4").read_bytes()
    # The next run that is watched at this port has videos of the same names.
    assert video.headers["cache-control"] == "no-store"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 4, "seconds": NaN}',
        '{"step": 4, "seconds": 1e999, "nr": Infinity}',
        '{"step": 4, "seconds": 1e308}\n{"step": 5, "seconds": 1e308}',
        "\n".join(f'{{"step": {step}, "nr": 1e308}}' for step in range(4, 900)),
        '{"step": 4, "\\ud800": 1.0, "warnings": {"\\udc00": "\\ud800"}}',
    ],
    ids=["nan", "infinite", "sum of seconds", "mean of points", "surrogates"],
)
def test_a_log_of_a_stranger_does_not_break_the_page(run: Path, line: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    answer = client(run).get("/run")
    assert answer.status_code == 200 and answer.json()["step"] >= 4


@pytest.mark.parametrize(
    "path",
    ["/samples/step_000002/07.mp4", "/samples/..%2F/job.yaml", "/job.yaml", "/metrics.jsonl"],
)
def test_nothing_else_is_given(run: Path, path: str) -> None:
    assert client(run).get(path).status_code == 404


def test_nothing_is_taken(run: Path) -> None:
    for method in ("post", "put", "delete"):
        assert getattr(client(run), method)("/run").status_code == 405


def test_other_machines_need_the_token_and_other_names_are_refused(run: Path) -> None:
    asked = client(run, "a-token-of-some-length", "0.0.0.0")
    assert asked.get("/").status_code == 200 and asked.get("/run").status_code == 401
    assert asked.get("/samples/step_000002/00.mp4").status_code == 401
    known = {"Authorization": "Bearer a-token-of-some-length"}
    assert asked.get("/run", headers=known).status_code == 200
    assert client(run).get("/run", headers={"Host": "evil.example"}).status_code == 403


def test_a_host_for_others_without_a_token_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="a token is needed"):
        watch(run, host="0.0.0.0")
