"""The API without a worker: what it takes, what it refuses, and requests that try to break it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from infer.serve.api.app import make_app
from infer.serve.backend import Backend
from tests.infer.serve.api.clients import client_of, error_of
from tests.infer.serve.standin import SERVED, WANTED, finish, make_backend


def test_another_model_is_not_found(client: TestClient) -> None:
    response = client.post("/v1/videos", json={"prompt": "x", "model": "sora-2"})
    assert "'tiny'" in error_of(response, 404)
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    backend = make_backend(tmp_path / "data", queue_limit=1)
    client = client_of(backend)
    client.post("/v1/videos", json={"prompt": "x"})
    response = client.post("/v1/videos", json={"prompt": "x"})
    assert "queue is full" in error_of(response, 429)
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_ranges_of_a_video_are_served(client: TestClient, backend: Backend) -> None:
    name = client.post("/v1/videos", json={"prompt": "x"}).json()["id"]
    assert "is queued" in error_of(client.get(f"/v1/videos/{name}/content"), 409)
    finish(backend)
    whole = client.get(f"/v1/videos/{name}/content")
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["content-type"] == "video/mp4"
    part = client.get(f"/v1/videos/{name}/content", headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-range"] == "bytes 2-4/10"
    assert client.get(f"/v1/videos/{name}").json()["progress"] == 100


def test_deleting_removes_the_file(client: TestClient, backend: Backend) -> None:
    name = client.post("/v1/videos", json={"prompt": "x"}).json()["id"]
    finish(backend)
    assert client.delete(f"/v1/videos/{name}").json() == {
        "id": name,
        "object": "video.deleted",
        "deleted": True,
    }
    assert not backend.results.video(name).exists()
    assert "no video" in error_of(client.get(f"/v1/videos/{name}"), 404)
    assert "no video" in error_of(client.delete(f"/v1/videos/{name}"), 404)


@pytest.mark.parametrize(
    "name", ["..%2f..%2fqueue.sqlite", "video_" + "g" * 32, "video_" + "a" * 32, "%00", "sync"]
)
def test_no_path_of_a_request_reaches_the_disk(client: TestClient, name: str) -> None:
    for path in (f"/v1/videos/{name}/content", f"/v1/videos/{name}"):
        error_of(client.get(path), 404)


def test_waiting_ends(client: TestClient, backend: Backend) -> None:
    response = client.post("/v1/videos/sync", json={"prompt": "x"})
    assert "not made within" in error_of(response, 504)
    assert backend.store.counts()["queued"] == 0


def test_a_page_of_the_list(client: TestClient) -> None:
    names = [client.post("/v1/videos", json={"prompt": "x"}).json()["id"] for _ in range(3)]
    page = client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in page["data"]] == [names[2], names[1]]
    assert page["has_more"] and page["last_id"] == names[1]
    rest = client.get("/v1/videos", params={"after": page["last_id"]}).json()
    assert [video["id"] for video in rest["data"]] == [names[0]] and not rest["has_more"]
    error_of(client.get("/v1/videos", params={"after": "nobody"}), 400)
    error_of(client.get("/v1/videos", params={"limit": "all"}), 400)


def test_a_server_that_loads_says_so(tmp_path: Path) -> None:
    backend = replace(make_backend(tmp_path / "data"), state=lambda: "loading")
    response = client_of(backend).get("/health")
    assert (response.status_code, response.json()["worker"]) == (503, "loading")


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Requests made from the OpenAPI description, right and wrong ones."""
    served = (replace(SERVED, takes_image="optionally"),)
    backend = make_backend(tmp_path / "data", served, sync_limit_s=0.0, queue_limit=20)
    backend.store.add(WANTED, 20)
    finish(backend)
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(backend))
    checks = [
        schemathesis.checks.not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    tried = 0
    found: Any = schema.get_all_operations()
    for result in found:
        operation = result.ok()

        @settings(
            max_examples=8,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def run(case: Any) -> None:
            nonlocal tried
            tried += 1
            response = case.call()
            if response.status_code != 504:  # sync gives up at once here, as its limit says
                case.validate_response(response, checks=checks)

        schemathesis_given(operation, run)
    assert tried > 50


def schemathesis_given(operation: Any, run: Any) -> None:
    """Runs a test for valid and for invalid requests of an operation."""
    from hypothesis import given
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        # Without parameters there are no invalid requests.
        with suppress(*[Unsatisfiable] * (mode is GenerationMode.NEGATIVE)):
            given(case=operation.as_strategy(generation_mode=mode))(run)()


def test_the_api_imports_no_pytorch() -> None:
    code = (
        "import sys; import infer.serve.api.app, infer.serve.server, infer.serve.supervisor; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unfinished_video_is_seen_where_its_job_says(
    client: TestClient, backend: Backend
) -> None:
    job = backend.store.add(WANTED, 10)
    backend.results.show(job.id, b"picture")
    assert client.get(f"/v1/videos/{job.id}").json()["preview"] is None  # it only waits
    backend.store.claim("w", lambda job: 1)
    path = client.get(f"/v1/videos/{job.id}").json()["preview"]
    shown = client.get(path)
    assert (shown.content, shown.headers["content-type"]) == (b"picture", "image/webp")
    backend.results.remove_preview(job.id)
    assert client.get(f"/v1/videos/{job.id}").json()["preview"] is None
    assert "has no preview now" in error_of(client.get(path), 404)
    error_of(client.get(f"/v1/videos/video_{'0' * 32}/preview"), 404)


def test_a_lora_is_asked_for_by_its_name(tmp_path: Path) -> None:
    served = replace(SERVED, loras=("anime", "sketch"))
    backend = make_backend(tmp_path / "data", (served,))
    with client_of(backend) as client:
        assert client.get("/v1/models").json()["data"][0]["loras"] == ["anime", "sketch"]
        made = client.post("/v1/videos", json={"prompt": "a fox", "lora": "anime"})
        assert made.status_code == 200 and made.json()["lora"] == "anime"
        named = {"name": "anime", "scale": 1.0}
        client.post("/v1/videos", json={"prompt": "a fox", "lora": named})
        client.post("/v1/videos", data={"prompt": "a fox", "lora": json.dumps(named)})
        assert [job.lora for job in backend.store.claim("w", lambda job: 9)] == ["anime"] * 3
        wrong = client.post("/v1/videos", json={"prompt": "a fox", "lora": "../anime"})
        assert "not served with 'tiny' here; it has anime, sketch" in error_of(wrong, 400)
        path = client.post("/v1/videos", json={"prompt": "a fox", "lora_path": "/a"})
        assert "give the name of one as lora" in error_of(path, 400)


def test_a_request_picks_one_of_several_students(tmp_path: Path) -> None:
    other = replace(SERVED, name="other", trained=(16, 16, 5), steps=2, loras=("anime",))
    backend = make_backend(tmp_path / "data", (SERVED, other))
    with client_of(backend) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(one["id"], one["size"], one["loras"]) for one in listed] == [
            ("tiny", "32x32", []),
            ("other", "16x16", ["anime"]),
        ]
        body = {"prompt": "a fox", "num_inference_steps": 2, "lora": "anime"}
        for model, size in ((None, None), ("tiny", None), ("other", "16x16")):
            answer = client.post("/v1/videos", json={**body, "model": model})
            if size is None:  # it has other steps
                assert "exactly 4 steps" in error_of(answer, 400)
            else:
                assert (answer.json()["model"], answer.json()["size"]) == (model, size)
        plain = client.post("/v1/videos", json={"prompt": "a fox"}).json()
        assert (plain["model"], plain["size"]) == ("tiny", "32x32")
        wrong = client.post("/v1/videos", json={"prompt": "a fox", "lora": "anime"})
        assert "lora: 'anime' is not served with 'tiny' here" in error_of(wrong, 400)
        gone = client.post("/v1/videos", json={"prompt": "a fox", "model": "third"})
        assert "this server has 'tiny', 'other'" in error_of(gone, 404)
