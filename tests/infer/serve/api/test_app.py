"""The API without a worker: what it takes, what it refuses, and requests that try to break it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
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
from infer.serve.api.guard import Guard
from infer.serve.backend import Backend
from tests.infer.serve.standin import SERVED, WANTED, finish, make_backend

LOCAL = "http://127.0.0.1:8000"
TOKEN = "0123456789abcdef-token"
POLICY = "content-security-policy"


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return make_backend(tmp_path / "data", sync_limit_s=0.05, queue_limit=50)


def client_of(backend: Backend, token: str | None = None, host: str = "127.0.0.1") -> TestClient:
    app = Guard(make_app(backend), token, host, backend.options.most_body_bytes)
    return TestClient(app, base_url=LOCAL, raise_server_exceptions=False)


@pytest.fixture
def client(backend: Backend) -> Iterator[TestClient]:
    with client_of(backend) as client:
        yield client


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"type", "message"}
    return str(body["error"]["message"])


def test_json_and_forms_ask_for_the_same(client: TestClient) -> None:
    asked = {"prompt": "a fox", "seed": 5, "size": "48x32", "num_frames": 17, "fps": 4}
    extra = {"seed": 5, "width": 48, "height": 32, "num_frames": 17, "fps": 4}
    form = {key: (None, str(value)) for key, value in asked.items()}
    for response in (
        client.post("/v1/videos", json=asked),
        client.post("/v1/videos", files=form),
        client.post("/v1/videos", data={"prompt": "a fox", "extra_params": json.dumps(extra)}),
    ):
        assert response.status_code == 200, response.text
        made = response.json()
        assert made["object"] == "video" and made["status"] == "queued"
        assert (made["size"], made["num_frames"], made["fps"]) == ("48x32", 17, 4.0)
        assert (made["seed"], made["seconds"], made["prompt"]) == (5, "4.25", "a fox")


def test_what_is_left_out_is_as_trained(client: TestClient) -> None:
    made = client.post("/v1/videos", json={"prompt": "x"}).json()
    assert (made["size"], made["num_frames"], made["fps"]) == ("32x32", 9, 8.0)
    again = client.post("/v1/videos", json={"prompt": "x"}).json()
    assert made["seed"] != again["seed"]
    longer = client.post("/v1/videos", json={"prompt": "x", "seconds": "2"}).json()
    assert longer["num_frames"] == 17


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inference_steps": 30}, "distilled for exactly 4 steps"),
        ({"guidance_scale": 5.0}, "learned its teacher's guidance"),
        ({"negative_prompt": "blurry"}, "none of"),
        ({"flow_shift": 3}, "flow shift 8"),
        ({"generate_sound": True}, "generate_sound: this server has no such thing"),
        ({"input_reference": "data:..."}, "text alone"),
        ({"extra_params": {"input_reference": "x"}}, "extra_params.input_reference: is unknown"),
        ({"image_url": "http://x/a.png"}, "image_url: is not read by this server; leave it out"),
        ({"lora": 5}, "lora: should be a valid string"),
        ({"lora": {"name": "x"}}, "lora: 'x' is not served with 'tiny' here"),
        ({"lora": {"name": "x", "path": "/a"}}, "lora.path: is not read"),
        ({"lora": {"name": "x", "scale": 0.5}}, "lora.scale: LoRAs are served at strength 1"),
        ({"lora": "x"}, "with 'tiny' here; it has none; start it with --lora-folder"),
        ({"extra_params": {"guidance_scale": 2}}, "extra_params.guidance_scale"),
        ({"extra_params": {"fast": True}}, "extra_params.fast: is unknown"),
        ({"extra_params": "{"}, "extra_params: is not JSON"),
        ({"seed": 1, "extra_params": {"seed": 2}}, "one of the two"),
        ({"sead": 1}, "did you mean seed"),
        ({"size": "33x32"}, "width: 33 is not divisible by 16"),
        ({"size": "wide"}, "size: is not WIDTHxHEIGHT"),
        ({"size": "32x32", "width": 48}, "one of the two"),
        ({"num_frames": 8}, "use 9"),
        ({"seconds": "4", "num_frames": 9}, "one of the two"),
        ({"seconds": "soon"}, "not a number of seconds"),
        ({"width": 1024, "height": 1024}, "more than the 36,864"),
        ({"seed": -1}, "seed: should be greater"),
        ({"seed": True}, "seed: should be a valid integer"),
        ({"fps": 0}, "fps: should be greater"),
        ({"prompt": " "}, "prompt: is empty"),
        ({"prompt": "x" * 5000}, "more than 4,000"),
        ({"prompt": "a\0b"}, "zero byte"),
        ({"prompt": "\ud800"}, "unable to parse raw data as a unicode string"),
        ({"prompt": 5}, "prompt: should be a valid string"),
    ],
)
def test_a_request_that_cannot_be_honoured_is_refused(
    client: TestClient, backend: Backend, fields: dict[str, Any], message: str
) -> None:
    body = json.dumps({"prompt": "x", **fields})
    headers = {"content-type": "application/json"}
    assert message in error_of(client.post("/v1/videos", content=body, headers=headers), 400)
    assert backend.store.counts()["queued"] == 0


def test_what_asks_for_nothing_else_is_taken(client: TestClient) -> None:
    asked = {"prompt": "x", "num_inference_steps": 4, "guidance_scale": 1, "negative_prompt": ""}
    asked |= {"generate_sound": False, "enable_teacache": None}
    form = {"prompt": "x", "rollout": "false"}
    for response in (client.post("/v1/videos", json=asked), client.post("/v1/videos", data=form)):
        assert response.status_code == 200, response.text


def test_an_uploaded_image_is_refused(client: TestClient) -> None:
    files: Any = {"prompt": (None, "x"), "input_reference": ("a.png", b"\x89PNG", "image/png")}
    assert "text alone" in error_of(client.post("/v1/videos", files=files), 400)


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


@pytest.mark.parametrize("body", [b"[" * 5000, b"[]", b"{", b"\xff", b'{"prompt": NaN}', b""])
def test_what_is_no_json_object_is_refused(client: TestClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error_of(client.post("/v1/videos", content=body, headers=headers), 400)


def test_an_error_of_ours_shows_no_traceback(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(type(backend.store), "page", broken)
    response = client.get("/v1/videos")
    assert "internal error" in error_of(response, 500) and "secret" not in response.text


def test_the_figures_are_prometheus_text(client: TestClient, backend: Backend) -> None:
    client.post("/v1/videos", json={"prompt": "x"})
    client.post("/v1/videos", json={"prompt": "x"})
    finish(backend)
    text = client.get("/metrics").text
    assert 'lightx2v_sgmd_videos{status="queued"} 1\n' in text
    assert 'lightx2v_sgmd_finished_videos_total{status="completed"} 1\n' in text
    assert "lightx2v_sgmd_generation_seconds_total 2\n" in text


def test_a_server_that_loads_says_so(tmp_path: Path) -> None:
    backend = replace(make_backend(tmp_path / "data"), state=lambda: "loading")
    response = client_of(backend).get("/health")
    assert (response.status_code, response.json()["worker"]) == (503, "loading")


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
