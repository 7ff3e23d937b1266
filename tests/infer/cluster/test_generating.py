"""Prompt files on a cluster: the files are those of one machine, and a dead machine loses none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infer import Cancelled
from infer.batch.requests import Request
from infer.cluster import generating
from infer.cluster.generating import MadeFile, ShareEvent, ShareOrder, make, shares
from lightx2v_sgmd.system.errors import RunError, UserError
from tests.students import generate_files

PROMPTS = ["a red circle", "a blue square", "a red square", "a blue circle", "a red circle moving"]
Tasks = Callable[[ShareOrder], Iterator[ShareEvent]]


class Ray:
    """As much of Ray as is used, in this process: tasks run when their events are asked for."""

    def __init__(self, make: Tasks) -> None:
        self.make, self.orders = make, list[ShareOrder]()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        return lambda function: SimpleNamespace(
            remote=self._start if function is generating.make else function
        )

    def _start(self, order: ShareOrder) -> Iterator[ShareEvent]:
        self.orders.append(order)
        return self.make(order)

    def get(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def wait(self, streams: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return streams[-1:], streams[:-1]  # not in the order in which they were sent


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tasks], Ray]:
    def start(tasks: Tasks) -> Ray:
        ray = Ray(tasks)

        @contextmanager
        def joined(option: str, address: str | None) -> Iterator[Ray]:
            assert (option, address) == ("--ray", "first:6379")
            yield ray

        monkeypatch.setattr(generating, "joined", joined)
        return ray

    return start


@pytest.mark.slow
def test_the_files_are_those_of_one_machine_though_a_task_ran_twice(
    shared_student: Path, tmp_path: Path, cluster: Callable[[Tasks], Ray]
) -> None:
    def dies_once(order: ShareOrder) -> Iterator[ShareEvent]:
        events = list(make(order))
        yield events[0]
        yield from events  # Ray runs it again from its beginning

    ray = cluster(dies_once)
    asked: dict[str, Any] = {"batch_size": 2, "seed": 5, "device": "cpu", "quiet": True}
    here = generate_files(shared_student, PROMPTS, tmp_path / "here", **asked)
    there = generate_files(shared_student, PROMPTS, tmp_path / "there", **asked, ray="first:6379")
    assert [len(order.requests) for order in ray.orders] == [4, 1]
    assert [file.name for file in there.files] == [file.name for file in here.files]
    assert (len(there.files), there.failed, there.skipped) == (5, [], 0)
    for file in (tmp_path / "here").iterdir():
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes(), file.name

    there.files[1].unlink()
    again = generate_files(shared_student, PROMPTS, tmp_path / "there", **asked, ray="first:6379")
    assert again.skipped == 4 and [o.requests[0].prompt for o in ray.orders[2:]] == [PROMPTS[1]]
    assert again.files == there.files


def test_videos_of_dead_tasks_and_of_other_weights_are_named(
    shared_student: Path, tmp_path: Path, cluster: Callable[[Tasks], Ray]
) -> None:
    def tasks(order: ShareOrder) -> Iterator[Any]:
        # Two threads write the files of a batch, so either can be the first.
        events = [event for event in make(order) if isinstance(event, MadeFile)]
        first = min(events, key=lambda event: event.name or "")
        if len(events) > 1:
            yield first
            yield RuntimeError("the node is gone")
        else:
            yield replace(first, provenance={**first.provenance, "weights": "x"}, machine="far")

    ray = cluster(tasks)
    made = generate_files(
        shared_student, PROMPTS[:3], tmp_path, batch_size=2, device="cpu", ray="first:6379"
    )
    assert len(ray.orders) == 2
    assert [file.name for file in made.files] == ["0000_a_red_circle.mp4"]
    assert dict(made.failed) == {
        "0001_a_blue_square": "the process that makes it died 3 times (the node is gone)",
        "0002_a_red_square": "far: weights of its video differ from this machine's; install the "
        "same package there, and give it the same weights",
    }
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_made_there_is_refused_or_named(
    shared_student: Path,
    tmp_path: Path,
    cluster: Callable[[Tasks], Ray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster(make)
    asked: dict[str, Any] = {"device": "cpu", "ray": "first:6379", "quiet": True}

    def run(**more: Any) -> Any:
        return generate_files(shared_student, PROMPTS[:1], tmp_path, **{**asked, **more})

    with pytest.raises(UserError, match="max_memory_gib: 1e-06 is too little for"):
        run(max_memory_gib=1e-6)
    with pytest.raises(UserError, match="--profile: follows this process alone"):
        run(profile=tmp_path / "trace.json")
    with pytest.raises(Cancelled):
        run(cancel=lambda: True)

    def missing(*args: object) -> None:
        raise ModuleNotFoundError("No module named 'infer'")

    with monkeypatch.context() as there:
        there.setattr(generating, "plan_here", missing)
        with pytest.raises(RunError, match=r"cannot run this package \(No module .* install the"):
            run()

    def broken(*args: object) -> None:
        raise RuntimeError("CUDA error\nmore")

    monkeypatch.setattr("infer.parts.StudentParts._load_network", broken)
    assert run().failed == [("0000_a_red_circle", "RuntimeError: CUDA error")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="run the command without torchrun"):
        run()
    assert list(tmp_path.iterdir()) == []


def test_shares_are_whole_batches_of_a_bounded_length() -> None:
    requests = [Request("a", i, f"{i}", 32, 32 + 16 * (i % 2), 9) for i in range(300)]
    cut = shares(requests, 4, 2)
    assert [len(share) for share in cut] == [64, 64, 62, 64, 46]
    assert sorted(r.seed for share in cut for r in share) == list(range(300))
    wide = [request.width for share in cut for request in share]
    assert wide == [32] * 150 + [48] * 150  # batches of one size, as on one machine
    assert [len(share) for share in shares(requests[:10], 2, 3)] == [4, 3, 3]
    assert [len(share) for share in shares(requests[:2], 100, 3)] == [1, 1]
