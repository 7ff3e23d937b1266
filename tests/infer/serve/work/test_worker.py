"""The worker around a stand-in for the student: batches, failures, cancelling."""

from __future__ import annotations

import errno
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from infer.serve.backend import Backend
from infer.serve.work.maker import IDLE_S, SPACE_S, Maker
from infer.serve.work.messages import ServerStopped
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.system.errors import UserError
from tests.infer.serve.standin import (
    WANTED,
    OneStudent,
    StandIn,
    make_backend,
    make_maker,
)


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return make_backend(tmp_path / "data")


def pipes() -> tuple[Connection, Connection]:
    return multiprocessing.Pipe()


def work_through(backend: Backend, student: Any) -> None:
    """Works until nothing waits."""
    ours, theirs = pipes()
    maker = make_maker(backend, student, theirs)
    wait = maker._wait_for_server

    def stop_when_idle(wait_s: float) -> None:
        if wait_s:
            raise ServerStopped
        wait(wait_s)

    maker._wait_for_server = stop_when_idle  # type: ignore[method-assign]
    with pytest.raises(ServerStopped):
        maker.work(None)
    ours.close()


def add(backend: Backend, seed: int, **changes: Any) -> str:
    return backend.store.add(replace(WANTED, seed=seed, **changes), 1000).id


def status(backend: Backend, name: str) -> str:
    job = backend.store.get(name)
    return "none" if job is None else job.status


def test_requests_of_one_size_are_made_together(backend: Backend) -> None:
    names = [add(backend, seed) for seed in (11, 12)]
    add(backend, 20, num_frames=17)
    names.append(add(backend, 13))
    student = StandIn()
    work_through(backend, student)
    assert student.batches == [[11, 12, 13], [20]]
    for name, seed in zip(names, (11, 12, 13), strict=True):
        frames, fps = read_video(backend.results.video(name))
        assert (len(frames), fps) == (10, 8.0)
        assert abs(int(frames.mean()) - seed) < 4


def test_one_bad_video_does_not_take_its_batch_with_it(backend: Backend) -> None:
    def fails(seeds: Sequence[int]) -> Exception | None:
        return UserError("out of memory: too large") if 2 in seeds else None

    names = [add(backend, seed) for seed in (1, 2, 3)]
    work_through(backend, StandIn(fails=fails))
    assert [status(backend, name) for name in names] == ["completed", "failed", "completed"]
    failed = backend.store.get(names[1])
    assert failed is not None and failed.error == "out of memory: too large"


def test_an_internal_error_tells_the_client_nothing_of_it(
    backend: Backend, capfd: pytest.CaptureFixture[str]
) -> None:
    name = add(backend, 1)
    work_through(backend, StandIn(fails=lambda seeds: RuntimeError("secret /etc/path")))
    failed = backend.store.get(name)
    assert failed is not None and failed.error == "internal error; the server's log says more"
    assert "secret" in capfd.readouterr().err


def test_a_deleted_job_stops_between_steps(backend: Backend) -> None:
    name = add(backend, 1)
    done: list[int] = []

    class Deleting(StandIn):
        def denoise(self, rows: Any, seeds: Any, size: Any, on_step: Any) -> Any:
            def step(index: int, x_t: Any) -> None:
                done.append(index)
                if index == 1:
                    backend.delete(name)
                on_step(index, x_t)

            return super().denoise(rows, seeds, size, step)

    work_through(backend, Deleting())
    assert done == [0, 1]
    assert status(backend, name) == "none" and not backend.results.video(name).exists()


def test_a_job_deleted_in_a_batch_leaves_the_others(backend: Backend) -> None:
    names = [add(backend, seed) for seed in (1, 2)]

    class Deleting(StandIn):
        def denoise(self, rows: Any, seeds: Any, size: Any, on_step: Any) -> Any:
            backend.delete(names[0])
            return super().denoise(rows, seeds, size, on_step)

    work_through(backend, Deleting())
    assert [status(backend, name) for name in names] == ["none", "completed"]
    assert not backend.results.video(names[0]).exists()


def test_stop_gives_the_jobs_back(backend: Backend) -> None:
    name = add(backend, 1)
    ours, theirs = pipes()
    ours.send("stop")
    maker: Maker = make_maker(backend, StandIn(), theirs)
    with pytest.raises(ServerStopped):
        maker.work(None)
    assert status(backend, name) == "in_progress"
    backend.store.release("w", died=False)
    assert status(backend, name) == "queued"


def test_a_batch_is_made_with_its_lora(backend: Backend) -> None:
    for seed, lora in ((1, None), (2, "sketch"), (3, "sketch")):
        add(backend, seed, lora=lora)
    ours, theirs = pipes()
    maker = make_maker(backend, StandIn(), theirs)
    while jobs := backend.store.claim("w", lambda job: 4):
        maker._make(jobs)
    ours.close()
    assert isinstance(maker.students, OneStudent)
    assert maker.students.asked == [("tiny", None), ("tiny", "sketch")]
    assert maker.students.student.batches == [[1], [2, 3]]


def test_a_batch_is_made_with_its_weights(backend: Backend) -> None:
    for seed, model in ((1, "tiny"), (2, "other"), (3, "tiny")):
        add(backend, seed, model=model)
    student = OneStudent(StandIn())
    ours, theirs = pipes()
    maker = Maker(student, backend.store, backend.results, "w", theirs)
    while jobs := backend.store.claim("w", lambda job: 4):
        maker._make(jobs)
    ours.close()
    assert student.asked == [("tiny", None), ("other", None)]
    assert student.student.batches == [[1, 3], [2]]


def test_a_full_disk_fails_no_job(backend: Backend, capfd: pytest.CaptureFixture[str]) -> None:
    full = [OSError(errno.ENOSPC, "No space left on device") for _ in range(2)]
    names = [add(backend, seed) for seed in (1, 2)]
    _, theirs = pipes()
    maker = make_maker(backend, StandIn(fails=lambda seeds: full.pop() if full else None), theirs)
    waits: list[float] = []

    def note(wait_s: float) -> None:
        waits.append(wait_s)
        if wait_s == IDLE_S:
            raise ServerStopped

    maker._wait_for_server = note  # type: ignore[method-assign]
    with pytest.raises(ServerStopped):
        maker.work(None)
    assert [status(backend, name) for name in names] == ["completed", "completed"]
    assert waits.count(SPACE_S) == 2
    assert capfd.readouterr().err.count("accepted videos wait until there is space") == 2
