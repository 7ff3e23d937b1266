"""An engine of a cluster around a stand-in for the student: its events, and when it stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from infer.cluster.engine import Advanced, Engine, Event, Failed, Finished
from infer.serve.jobs import VideoJob
from lightx2v_sgmd.system.errors import UserError
from tests.infer.serve.standin import WANTED, OneStudent, StandIn, make_backend


def engine_of(student: Any) -> Engine:
    engine = Engine.__new__(Engine)
    engine._use(OneStudent(student), previews=False)
    return engine


def jobs_of(folder: Path, *seeds: int) -> list[VideoJob]:
    backend = make_backend(folder)
    return [backend.store.add(replace(WANTED, seed=seed), 10) for seed in seeds]


def events_of(engine: Engine, jobs: list[VideoJob], most: int = 1000) -> list[Event]:
    async def listen() -> list[Event]:
        found: list[Event] = []
        events = engine.make(jobs)
        async for event in events:
            found.append(event)
            if len(found) == most:
                break
        await events.aclose()  # type: ignore[attr-defined]
        return found

    return asyncio.run(listen())


def test_a_batch_is_a_stream_of_progress_and_videos(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path / "data", 1, 2)
    names = tuple(job.id for job in jobs)
    engine = engine_of(StandIn())
    events = events_of(engine, jobs)
    assert events[:4] == [Advanced(names, percent) for percent in (20, 40, 60, 80)]
    made = [event for event in events[4:] if isinstance(event, Finished)]
    assert tuple(one.name for one in made) == names
    assert all(one.content[4:8] == b"ftyp" for one in made)
    assert not list((engine._desk.results.folder / "videos").iterdir())


def test_what_cannot_be_made_is_said_and_the_next_batch_is_made(tmp_path: Path) -> None:
    (bad,) = jobs_of(tmp_path / "bad", 1)
    (good,) = jobs_of(tmp_path / "good", 2)
    engine = engine_of(StandIn(fails=lambda seeds: UserError("too large") if 1 in seeds else None))
    assert events_of(engine, [bad]) == [Failed(bad.id, "too large")]
    assert isinstance(events_of(engine, [good])[-1], Finished)


def test_an_engine_stops_when_nobody_listens(tmp_path: Path) -> None:
    (first,) = jobs_of(tmp_path / "first", 1)
    (second,) = jobs_of(tmp_path / "second", 2)
    gone = threading.Event()
    steps: list[tuple[int, ...]] = []

    class Waiting(StandIn):
        def denoise(
            self, rows: Any, seeds: Sequence[int], size: Any, on_step: Callable[[int, Any], None]
        ) -> Any:
            def step(number: int, x_t: Any) -> None:
                steps.append((*seeds, number))
                on_step(number, x_t)
                assert gone.wait(600), "nobody let it go on"

            return super().denoise(rows, seeds, size, step)

    engine = engine_of(Waiting())
    assert events_of(engine, [first], most=1) == [Advanced((first.id,), 20)]
    gone.set()  # the batch goes on, and nobody listens
    assert [type(event) for event in events_of(engine, [second])] == [Advanced] * 4 + [Finished]
    assert steps == [(1, 0), (1, 1), *((2, number) for number in range(4))]
