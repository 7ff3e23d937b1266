"""The server: the study's files and votes, and nothing else for anybody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from lightx2v_sgmd.apps.study.api import make_app
from lightx2v_sgmd.apps.study.collecting import page_files
from lightx2v_sgmd.apps.study.store import VoteStore, read_rows
from lightx2v_sgmd.apps.study.votes import SUBMISSION, most_bytes
from tests.apps.study.conftest import MadeStudy, submission_of

LOCAL = "http://127.0.0.1:8100"
WORD = "a-word-that-nobody-guesses"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoteStore]:
    with closing(VoteStore(tmp_path / "votes.sqlite", most=2)) as store:
        yield store


def client_of(
    made: MadeStudy, store: VoteStore, host: str = "127.0.0.1", base: str = ""
) -> TestClient:
    app = make_app(made.key, page_files(made.folder / "study", made.key), store, host, base)
    return TestClient(app, base_url=LOCAL, raise_server_exceptions=False)


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    return str(response.json()["error"]["message"])


def test_a_rater_gets_the_page_and_its_videos(made: MadeStudy, store: VoteStore) -> None:
    client = client_of(made, store)
    page = client.get("/")
    assert page.text == (made.page / "index.html").read_text()
    assert "default-src 'none'" in page.headers["content-security-policy"]
    name = made.key.pairs[0].first
    video = client.get(f"/videos/{name}")
    assert video.content == (made.page / "videos" / name).read_bytes()
    assert client.get(f"/videos/{name}", headers={"Range": "bytes=0-9"}).status_code == 206
    assert client.get("/collector").json() == {"study": made.key.study}


def test_votes_are_kept(made: MadeStudy, store: VoteStore, tmp_path: Path) -> None:
    client = client_of(made, store)
    given = submission_of(made.key, "anna", {"motion": "a"})
    body = given.model_dump_json()
    sent = client.post("/votes", content=body, headers={"Content-Type": "application/json"})
    assert sent.status_code == 200 and sent.json() == {"votes": len(made.key.pairs)}
    assert [json.loads(row) for row in read_rows(tmp_path / "votes.sqlite")] == [json.loads(body)]
    client.post("/votes", content=body, headers={"Content-Type": "application/json"})
    sent = client.post("/votes", content=body, headers={"Content-Type": "application/json"})
    assert "no more votes" in error_of(sent, 503)


@pytest.mark.parametrize(
    "path",
    [
        "/key.json",
        "/videos/../../key.json",
        "/videos/..%2f..%2fkey.json",
        "/videos/%2e%2e/index.html",
        "/votes.sqlite",
        "/videos/",
        "/docs",
        "/openapi.json",
        "//etc/passwd",
    ],
)
def test_no_path_leads_to_another_file(made: MadeStudy, store: VoteStore, path: str) -> None:
    error_of(client_of(made, store).get(path), 404)


def test_what_is_no_vote_is_refused_in_one_line(made: MadeStudy, store: VoteStore) -> None:
    client = client_of(made, store)
    send = {"Content-Type": "application/json"}
    assert "line 1" in error_of(client.post("/votes", content=b"{", headers=send), 400)
    assert "another study" in error_of(
        client.post(
            "/votes",
            content=submission_of(made.key, "x", {})
            .model_copy(update={"study": "0" * 16})
            .model_dump_json(),
            headers=send,
        ),
        400,
    )
    error_of(client.post("/votes", content=b"x=1", headers={"Content-Type": "text/plain"}), 415)
    most = most_bytes(made.key)
    assert most < SUBMISSION.size / 100  # of a study of ten pairs
    error_of(client.post("/votes", content=b" " * (most + 1), headers=send), 413)
    error_of(client.get("/votes"), 405)


def test_other_sites_and_other_names_of_this_machine_are_refused(
    made: MadeStudy, store: VoteStore
) -> None:
    client = client_of(made, store)
    error_of(client.get("/", headers={"Host": "evil.example"}), 403)
    error_of(client.post("/votes", headers={"Origin": "http://evil.example"}), 403)


def test_with_a_word_in_the_address_nothing_is_answered_without_it(
    made: MadeStudy, store: VoteStore
) -> None:
    client = client_of(made, store, "0.0.0.0", f"/{WORD}")
    assert client.get(f"/{WORD}/").status_code == 200
    assert client.get(f"/{WORD}/videos/{made.key.pairs[0].first}").status_code == 200
    for path in ("/", "/collector", "/votes", f"/videos/{made.key.pairs[0].first}", "/word/"):
        error_of(client.get(path), 404)


def test_an_error_of_ours_shows_no_trace(made: MadeStudy, store: VoteStore) -> None:
    client = client_of(made, store)
    store.close()
    body = submission_of(made.key, "anna", {}).model_dump_json()
    sent = client.post("/votes", content=body, headers={"Content-Type": "application/json"})
    assert "cannot be written now" in error_of(sent, 503)
