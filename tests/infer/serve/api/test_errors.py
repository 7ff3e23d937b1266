"""Errors of a server's application."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from infer.serve.backend import Backend
from tests.infer.serve.api.clients import error_of


def test_an_error_of_ours_shows_no_traceback(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(type(backend.store), "page", broken)
    response = client.get("/v1/videos")
    assert "internal error" in error_of(response, 500) and "secret" not in response.text
