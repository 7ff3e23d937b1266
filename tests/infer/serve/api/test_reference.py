"""Images that videos start from: how requests carry them, what is refused, what becomes of them."""

from __future__ import annotations

import base64
import io
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient
from PIL import Image

from infer.options import Options
from infer.serve.api.app import make_app
from infer.serve.api.guard import Guard
from infer.serve.api.reference import MOST_BODY, fingerprint
from infer.serve.backend import Backend
from infer.serve.jobs import Wanted
from infer.serve.work.maker import Maker
from infer.serve.work.students import Students
from infer.serve.work.worker import served_as
from lightx2v_sgmd.schedule import Schedule
from tests.infer.serve.api.clients import LOCAL, error_of
from tests.infer.serve.standin import SERVED, finish, make_backend
from tests.students import generate, manifest_of
from tests.tiny import make_tiny_wan

MODELS = (
    SERVED,
    replace(SERVED, name="image", takes_image="always"),
    replace(SERVED, name="both", takes_image="optionally"),
)


def picture(colour: str = "red", size: tuple[int, int] = (48, 32), kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    mode = "1" if colour == "1" else "RGB"
    Image.new(mode, size, 1 if mode == "1" else colour).save(content, kind)
    return content.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return make_backend(tmp_path / "data", MODELS, queue_limit=3)


@pytest.fixture
def client(backend: Backend) -> Iterator[TestClient]:
    app = Guard(make_app(backend), None, "127.0.0.1", backend.most_body_bytes)
    with TestClient(app, base_url=LOCAL, raise_server_exceptions=False) as client:
        yield client


def kept(backend: Backend) -> list[str]:
    return sorted(path.name for path in (backend.results.folder / "images").glob("*"))


def test_forms_and_data_urls_bring_the_same_image(client: TestClient, backend: Backend) -> None:
    content = picture()
    form: Any = {"prompt": (None, "x"), "model": (None, "image")}
    asked = {"prompt": "x", "model": "image"}
    for response in (
        client.post("/v1/videos", files={**form, "input_reference": ("../../a", content, "x/y")}),
        client.post("/v1/videos", json={**asked, "input_reference": data_url(content)}),
        client.post(
            "/v1/videos", json={**asked, "input_reference": {"image_url": data_url(content)}}
        ),
    ):
        assert response.status_code == 200, response.text
        made = response.json()
        assert made["starts_from_image"] is True
        job = backend.job(made["id"])
        assert job.image == fingerprint(content)
        assert backend.results.image(job.id).read_bytes() == content
    assert len(kept(backend)) == 3
    full = client.post("/v1/videos", json={**asked, "input_reference": data_url(content)})
    assert full.status_code == 429 and len(kept(backend)) == 3  # nothing of it stays
    first, second, _ = backend.store.page(5, None, False)[0]
    assert client.delete(f"/v1/videos/{first.id}").status_code == 200
    assert kept(backend) == sorted(
        f"{job.id}.image" for job in backend.store.page(5, None, True)[0]
    )
    finish(backend)
    orphan = backend.results.image(f"video_{'0' * 32}")
    orphan.write_bytes(content)  # as after a kill between the image and its job
    backend.results.sweep_images(backend.store)
    (third,) = (job.id for job in backend.store.page(5, None, True)[0] if job.status == "queued")
    assert kept(backend) == [f"{third}.image"] and third != second.id


@pytest.mark.parametrize(
    ("model", "reference", "message"),
    [
        ("tiny", data_url(picture()), "makes videos from text alone; leave it out"),
        ("image", None, "input_reference: is missing, and this student starts videos from an"),
        ("image", "", "input_reference: is missing"),
        ("both", "http://127.0.0.1/a.png", "is not a data URL of a PNG, JPEG or WebP image"),
        ("both", "/etc/passwd", "fetches nothing and opens no file"),
        ("both", {"image_url": "file:///etc/passwd"}, "fetches nothing and opens no file"),
        ("both", {"file_id": "x"}, "input_reference"),
        ("both", 5, "input_reference: should be a valid string"),
        ("both", data_url(picture(kind="GIF"), "gif"), "is not a data URL of a PNG"),
        ("both", data_url(picture(kind="GIF")), "is not a PNG, JPEG or WebP image"),
        ("both", "data:image/png;base64,????", "is not base64 after its comma"),
        ("both", data_url(b"\x89PNG"), "is not a PNG, JPEG or WebP image"),
        ("both", data_url(picture()[:60]), "it is damaged, save it again"),
        ("both", data_url(picture("1", (5000, 4001))), "more than the 20,000,000 that are read"),
        ("both", data_url(picture(size=(8, 8))), "at least 16 x 16"),
    ],
)
def test_what_is_no_image_is_refused(
    client: TestClient, backend: Backend, model: str, reference: Any, message: str
) -> None:
    body = {"prompt": "x", "model": model, "input_reference": reference}
    assert message in error_of(client.post("/v1/videos", json=body), 400)
    assert backend.store.names() == set() and kept(backend) == []


def test_a_full_disk_is_said_and_leaves_nothing(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infer.serve.results.Results.keep_image", full)
    body = {"prompt": "x", "model": "both", "input_reference": data_url(picture())}
    message = error_of(client.post("/v1/videos", json=body), 503)
    assert message == "the image cannot be written now; try again later"
    assert backend.store.names() == set()


def test_uploads_are_bounded_and_given_once(client: TestClient, backend: Backend) -> None:
    form: Any = {"prompt": (None, "x"), "model": (None, "both")}
    large = {"input_reference": ("a.png", bytes(MOST_BODY), "image/png")}
    assert "make the image smaller" in error_of(
        client.post("/v1/videos", files={**form, **large}), 413
    )
    twice: Any = [
        *form.items(),
        ("input_reference", ("a.png", picture(), "image/png")),
        ("input_reference", ("b.png", picture(), "image/png")),
    ]
    assert "" != error_of(client.post("/v1/videos", files=twice), 400)
    both = {**form, "input_reference": (None, data_url(picture()))}
    made = client.post("/v1/videos", files=both)  # a form may carry a data URL as text
    assert made.status_code == 200 and backend.job(made.json()["id"]).image
    models = client.get("/v1/models").json()["data"]
    assert [model["takes_image"] for model in models] == ["never", "always", "optionally"]


def test_a_video_from_an_image_is_the_one_that_generate_makes(tmp_path: Path) -> None:
    weights = make_tiny_wan(tmp_path / "student", kind="image")
    manifest_of(Schedule()).write(weights)
    students = Students({"image": weights}, Options(device="cpu"), {}, 1)
    served = tuple(served_as(name, fit) for name, fit in students.check().items())
    assert [one.takes_image for one in served] == ["always"]
    backend = make_backend(tmp_path / "data", served)
    videos = []
    for colour in ("red", "blue"):
        content = picture(colour)
        wanted = Wanted("image", "a red circle", 3, 32, 32, 9, 8.0, None, fingerprint(content))
        job = backend.store.add(wanted, 10)
        backend.results.keep_image(job.id, content)
        _, pipe = multiprocessing.Pipe()
        maker = Maker(students, backend.store, backend.results, "w", pipe)
        maker.make(backend.store.claim("w", lambda job: 1))
        assert backend.job(job.id).status == "completed", backend.job(job.id).error
        videos.append(backend.results.video(job.id).read_bytes())
    assert kept(backend) == [] and videos[0] != videos[1]
    file = tmp_path / "red.png"
    file.write_bytes(picture("red"))
    out = tmp_path / "red.mp4"
    generate(weights, "a red circle", out, seed=3, image=file, device="cpu", quiet=True)
    assert out.read_bytes() == videos[0]
