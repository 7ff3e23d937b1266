"""Clients of a server's application, in this process."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from infer.serve.api.app import make_app
from infer.serve.api.guard import Guard
from infer.serve.backend import Backend

LOCAL = "http://127.0.0.1:8000"
TOKEN = "0123456789abcdef-token"


def client_of(backend: Backend, token: str | None = None, host: str = "127.0.0.1") -> TestClient:
    app = Guard(make_app(backend), token, host, backend.options.most_body_bytes)
    return TestClient(app, base_url=LOCAL, raise_server_exceptions=False)


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"type", "message"}
    return str(body["error"]["message"])
