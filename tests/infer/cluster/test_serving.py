"""The queue's side of a cluster: events become videos, and a dead engine loses no job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infer.cluster import serving
from infer.cluster.engine import Advanced, Event, Failed, Finished, Shown
from infer.cluster.serving import RayWorkers
from infer.options import Lora, Options
from infer.serve.backend import Backend
from infer.serve.jobs import VideoJob
from tests.infer.serve.standin import WANTED, make_backend


class Response:
    """The events of a batch; an exception among them is raised."""

    def __init__(self, events: list[Event | Exception]) -> None:
        self.events, self.cancelled = events, False

    def __iter__(self) -> Iterator[Event]:
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return make_backend(tmp_path / "data")


@pytest.fixture
def workers(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> RayWorkers:
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0, "GPU": 2.0})
    monkeypatch.setattr(serving, "join", lambda option: ray)
    return RayWorkers({"tiny": Path("w")}, Options(), backend.options, backend.store, lambda: None)


def work_off(
    workers: RayWorkers, answer: Callable[[list[VideoJob]], Response], rounds: int
) -> list[Response]:
    """Lets a thread of it send batches, so many, and then stops it."""
    given: list[Response] = []
    pauses: list[float | None] = []

    def remote(jobs: list[VideoJob], images: dict[str, bytes]) -> Response:
        given.append(answer(jobs))
        return given[-1]

    look = workers._stopping.wait

    def wait(timeout: float | None = None) -> bool:
        if timeout == serving._POLL_S:
            workers._stopping.set()  # nothing waits any more
        else:
            pauses.append(timeout)
        return look(0)

    workers._stopping.wait = wait  # type: ignore[method-assign]
    handle: Any = SimpleNamespace(
        options=lambda stream: SimpleNamespace(make=SimpleNamespace(remote=remote))
    )
    workers._work(handle)
    assert len(given) == rounds and len(pauses) == workers.restarts
    return given


def test_an_engine_takes_a_gpu_where_there_are_any(workers: RayWorkers) -> None:
    assert workers._share == {"num_gpus": 1, "num_cpus": 1} and workers._most == 2


def test_events_become_progress_previews_videos_and_failures(
    backend: Backend, workers: RayWorkers
) -> None:
    names = [backend.store.add(WANTED, 10).id for _ in range(2)]
    seen: list[Any] = []

    def answer(jobs: list[VideoJob]) -> Response:
        (name,) = (job.id for job in jobs)
        if name == names[1]:
            return Response([Failed(name, "too large")])

        class Looking(Response):
            def __iter__(self) -> Iterator[Event]:
                for event in super().__iter__():
                    yield event
                    job = backend.store.get(name)
                    preview = backend.results.preview(name).exists()
                    seen.append((job and job.progress, preview))

        return Looking(
            [Advanced((name,), 20), Shown(name, b"picture"), Finished(name, 2.0, b"film")]
        )

    work_off(workers, answer, rounds=2)
    assert seen == [(20, False), (20, True), (100, False)]
    assert backend.results.video(names[0]).read_bytes() == b"film"
    jobs = [backend.store.get(name) for name in names]
    assert [job and (job.status, job.bytes, job.error) for job in jobs] == [
        ("completed", 4, None),
        ("failed", 0, "too large"),
    ]


def test_an_engine_that_dies_gives_its_job_back(backend: Backend, workers: RayWorkers) -> None:
    name = backend.store.add(WANTED, 10).id
    tries: list[int] = []

    def answer(jobs: list[VideoJob]) -> Response:
        tries.append(jobs[0].deaths)
        death = RuntimeError("the actor died")
        first: list[Event | Exception] = [Advanced((name,), 20), death]
        return Response(first if len(tries) == 1 else [Finished(name, 1.0, b"film")])

    work_off(workers, answer, rounds=2)
    assert tries == [0, 1] and workers.restarts == 1
    job = backend.store.get(name)
    assert job is not None and job.status == "completed"


def test_a_cluster_that_takes_no_request_does_not_keep_the_job(
    backend: Backend, workers: RayWorkers
) -> None:
    name = backend.store.add(WANTED, 10).id
    deaths: list[int] = []

    def answer(jobs: list[VideoJob]) -> Response:
        deaths.append(jobs[0].deaths)
        if len(deaths) == 1:
            raise RuntimeError("Serve is gone")
        return Response([Finished(name, 1.0, b"film")])

    work_off(workers, answer, rounds=1)
    job = backend.store.get(name)
    assert deaths == [0, 1] and job is not None and job.status == "completed"


def test_a_video_that_cannot_be_written_stops_its_engine(
    backend: Backend, workers: RayWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = backend.store.add(WANTED, 10).id
    tries: list[int] = []
    finish = workers._finish

    def full_once(batch: str, made: Finished) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no space left")
        finish(batch, made)

    monkeypatch.setattr(workers, "_finish", full_once)
    first, second = work_off(
        workers, lambda jobs: Response([Finished(name, 1.0, b"film")]), rounds=2
    )
    assert first.cancelled and not second.cancelled
    assert backend.results.video(name).read_bytes() == b"film"


def test_engines_have_the_name_of_the_servers_folder(
    backend: Backend, workers: RayWorkers, tmp_path: Path
) -> None:
    again = RayWorkers({}, Options(), backend.options, backend.store, lambda: None)
    other = replace(backend.options, data=tmp_path / "other")
    another = RayWorkers({}, Options(), other, backend.store, lambda: None)
    assert workers.name == again.name != another.name


def test_files_are_named_as_other_machines_find_them(
    backend: Backend, workers: RayWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("student", "lora.safetensors"):
        Path(name).touch()
    weights = {"a": Path("student"), "sprites": Path("sprites")}
    engine = Options(loras=(Lora(Path("lora.safetensors"), 0.5),), base="student")
    there = RayWorkers(weights, engine, backend.options, backend.store, lambda: None)
    sent, options, _, _ = there._values
    assert sent == {"a": tmp_path / "student", "sprites": Path("sprites")}
    assert options.loras == (Lora(tmp_path / "lora.safetensors", 0.5),)
    assert options.base == tmp_path / "student"


def test_a_job_that_is_deleted_is_cancelled_there(backend: Backend, workers: RayWorkers) -> None:
    name = backend.store.add(WANTED, 10).id

    def answer(jobs: list[VideoJob]) -> Response:
        backend.delete(name)
        return Response([Advanced((name,), 20), Finished(name, 1.0, b"film")])

    (response,) = work_off(workers, answer, rounds=1)
    assert response.cancelled and not backend.results.video(name).exists()
