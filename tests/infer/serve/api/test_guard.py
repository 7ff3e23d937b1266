"""Who may ask a server, and how much."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from infer.serve.backend import Backend
from tests.infer.serve.api.clients import LOCAL, TOKEN, client_of, error_of

POLICY = "content-security-policy"


def test_a_token_is_asked_for_everywhere_but_the_page(backend: Backend) -> None:
    client = client_of(backend, TOKEN, "0.0.0.0")
    for path in ("/v1/videos", "/metrics", "/openapi.json", "/v1/models", "/nothing"):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            assert "token" in error_of(client.get(path, headers=headers), 401)
    right = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/videos", headers=right).status_code == 200
    assert client.get("/").status_code == client.get("/health").status_code == 200
    page = client.get("/docs")
    assert page.status_code == 200 and "default-src 'none'" in page.headers[POLICY]
    assert "tiny" not in page.text and "://" not in page.text


def test_pages_of_other_sites_are_refused(client: TestClient) -> None:
    assert "other sites" in error_of(client.get("/v1/videos", headers={"origin": "http://x"}), 403)
    assert "this machine" in error_of(client.get("/v1/videos", headers={"host": "x.com"}), 403)
    own = {"origin": LOCAL}
    response = client.get("/v1/videos", headers=own)
    assert response.status_code == 200
    assert not [key for key in response.headers if key.startswith("access-control")]


def test_large_bodies_are_refused(client: TestClient) -> None:
    large = b'{"prompt": "' + b"x" * 2**20 + b'"}'
    headers = {"content-type": "application/json"}
    error_of(client.post("/v1/videos", content=large, headers=headers), 413)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    error_of(client.post("/v1/videos", content=chunks(), headers=headers), 413)
