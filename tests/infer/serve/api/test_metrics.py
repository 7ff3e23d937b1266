"""The figures of a server, as Prometheus reads them."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from infer.serve.backend import Backend
from tests.infer.serve.standin import finish


def test_the_figures_are_prometheus_text(client: TestClient, backend: Backend) -> None:
    client.post("/v1/videos", json={"prompt": "x"})
    client.post("/v1/videos", json={"prompt": "x"})
    finish(backend)
    text = client.get("/metrics").text
    assert 'lightx2v_sgmd_videos{status="queued"} 1\n' in text
    assert 'lightx2v_sgmd_finished_videos_total{status="completed"} 1\n' in text
    assert "lightx2v_sgmd_generation_seconds_total 2\n" in text
