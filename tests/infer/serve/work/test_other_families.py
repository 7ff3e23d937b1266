"""Students of other families than Wan through a worker: SDXL's images, and CogVideoX's videos."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from infer.options import Options
from infer.serve.backend import Backend
from infer.serve.work.maker import Maker
from infer.serve.work.previews import Previews
from infer.serve.work.students import Students
from infer.serve.work.worker import served_as
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.infer.serve.api.clients import client_of, error_of
from tests.infer.serve.standin import make_backend
from tests.students import generate, manifest_of
from tests.tiny import make_tiny_cogvideox

ENGINE = Options(device="cpu", text_cache=None)


def serve_it(
    weights: Path, base: tuple[float, ...], video: VideoFacts, data: Path
) -> tuple[Backend, Callable[[], None]]:
    """A server of a random student, and what makes its next job."""
    manifest = manifest_of(Schedule(base, 1.0, "ddim"))
    replace(manifest, video=video).write(weights)
    students = Students({"student": weights}, ENGINE, {}, 1)
    served = tuple(served_as(name, fit) for name, fit in students.check().items())
    backend = make_backend(data, served)
    ours, theirs = Pipe()
    previews = Previews(backend.results, every_s=0)
    maker = Maker(students, backend.store, backend.results, "w", theirs, previews)

    def make_next() -> None:
        assert not ours.closed, "the worker would take a closed pipe for a word of the server"
        maker.make(backend.store.claim("w", lambda job: 1))

    return backend, make_next


def test_images_are_made_shown_and_removed(tiny_sdxl: Path, tmp_path: Path) -> None:
    weights = shutil.copytree(tiny_sdxl, tmp_path / "student")
    video = VideoFacts(32, 32, 1, 1.0)
    backend, make_next = serve_it(weights, (1000.0,), video, tmp_path / "data")
    shown: list[bytes] = []
    show = type(backend.results).show
    with client_of(backend) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(backend.results),
            "show",
            lambda self, name, picture: (shown.append(picture), show(self, name, picture)),
        )
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["images"], model["size"], model["steps"]) == (True, "32x32", 1)
        wrong = {"prompt": "a fox", "num_frames": 9}
        assert "makes images; leave it out" in error_of(client.post("/v1/videos", json=wrong), 400)
        for number in range(2):
            made = client.post("/v1/videos", json={"prompt": "a red circle", "seed": 3}).json()
            path = f"/v1/videos/{made['id']}"
            assert (made["media_type"], made["num_frames"]) == ("image/png", 1)
            assert "is queued" in error_of(client.get(f"{path}/content"), 409)
            make_next()
            job = client.get(path).json()
            assert job["status"] == "completed", job["error"]
            assert len(shown) == number  # the first image taught the colours
        answer = client.get(f"{path}/content")
        assert answer.headers["content-type"] == "image/png"
        file = tmp_path / "alone.png"
        generate(weights, "a red circle", file, seed=3, device="cpu", quiet=True)
        assert answer.content == file.read_bytes() and shown[0][:4] == b"RIFF"
        backend.store.delete(made["id"])  # as a kill before the file went
        backend.results.sweep(backend.store)
        left = {path.suffix for path in (tmp_path / "data/videos").iterdir()}
        assert left == {".png"} and backend.results.found(made["id"]) is None
        assert client.delete(f"/v1/videos/{backend.store.names().pop()}").status_code == 200
        assert not list((tmp_path / "data/videos").iterdir())


def test_videos_of_a_variance_preserving_model_are_made_and_shown(tmp_path: Path) -> None:
    weights = make_tiny_cogvideox(tmp_path / "student")
    video = VideoFacts(32, 32, 9, 8.0)
    base = (1000.0, 750.0, 500.0, 250.0)
    backend, make_next = serve_it(weights, base, video, tmp_path / "data")
    with client_of(backend) as client:
        for _ in range(2):
            made = client.post("/v1/videos", json={"prompt": "a red circle", "seed": 3}).json()
            make_next()
        answer = client.get(f"/v1/videos/{made['id']}/content")
        assert answer.headers["content-type"] == "video/mp4"
        file = tmp_path / "alone.mp4"
        generate(weights, "a red circle", file, seed=3, device="cpu", quiet=True)
        assert answer.content == file.read_bytes()


def test_what_such_a_student_cannot_do_is_said_before_it_is_loaded(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    weights = shutil.copytree(tiny_sdxl, tmp_path / "student")
    manifest = manifest_of(Schedule((1000.0,), 1.0, "ddim"))
    replace(manifest, video=VideoFacts(32, 32, 1, 1.0)).write(weights)
    engine = replace(ENGINE, max_memory_gib=4.0)
    with pytest.raises(UserError, match="max_memory_gib: .* is not supported for SDXL"):
        Students({"student": weights}, engine, {}, 1).check()


@pytest.mark.slow
def test_one_whose_memory_is_not_planned_is_loaded_alone(
    shared_student: Path, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go before free memory is asked for, and it goes before another one is loaded."""
    images = shutil.copytree(tiny_sdxl, tmp_path / "images")
    manifest = manifest_of(Schedule((1000.0,), 1.0, "ddim"))
    replace(manifest, video=VideoFacts(32, 32, 1, 1.0)).write(images)
    students = Students({"videos": shared_student, "images": images}, ENGINE, {}, 1)
    students.check()
    asked: list[int] = []
    monkeypatch.setattr(
        "infer.engine_plan.refuse_too_large", lambda *_: asked.append(len(students.loaded))
    )
    students.get("videos", None, (32, 32, 9))
    students.get("images", None, (32, 32, 1))
    assert students.loaded == [("images", None)] and asked == [0]
    students.get("videos", None, (32, 32, 9))
    assert students.loaded == [("videos", None)]
