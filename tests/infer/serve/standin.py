"""A server without a student: what the API asks for, and a student whose videos cost nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from infer.serve.backend import Backend
from infer.serve.jobs import JobStore, VideoJob, Wanted
from infer.serve.options import Served, ServeOptions
from infer.serve.results import Results
from infer.serve.work.maker import Maker
from lightx2v_sgmd.families.size_rules import SizeRules

SERVED = Served(
    name="tiny",
    trained=(32, 32, 9),
    fps=8.0,
    steps=4,
    shift=8.0,
    rules=SizeRules(temporal=4, spatial=8, patch=(1, 2, 2), channels=4, most_positions=1024),
)
WANTED = Wanted("tiny", "a red circle", 1, 32, 32, 9, 8.0, None, None)


def make_backend(folder: Path, served: tuple[Served, ...] = (SERVED,), **options: Any) -> Backend:
    """A server's state in a folder, without a worker."""
    folder.mkdir(exist_ok=True)
    results = Results(folder)
    store = JobStore(results.queue)
    results.sweep(store)
    return Backend(
        store=store,
        results=results,
        served=served,
        options=ServeOptions(data=folder, **options),
        state=lambda: "ready",
        restarts=lambda: 0,
    )


def finish(backend: Backend, content: bytes = b"0123456789") -> list[VideoJob]:
    """Completes the next batch as a worker would."""
    jobs = backend.store.claim("w", lambda job: 1)
    for job in jobs:
        backend.results.video(job.id).write_bytes(content)
        assert backend.store.complete("w", job.id, 2.0, len(content))
    return jobs


class Latents:
    """One video's latents: its seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def isfinite(self) -> Any:
        return np.isfinite(np.float64(self.seed))


class StandIn:
    """A student of four steps whose frames are its seed's colour.

    Args:
        pause_s: How long a step takes.
        batches: Gets the seeds of every batch.
        fails: Says of which seeds a batch cannot be made.
    """

    def __init__(
        self,
        pause_s: float = 0.0,
        batches: list[list[int]] | None = None,
        fails: Callable[[Sequence[int]], Exception | None] = lambda seeds: None,
    ) -> None:
        self.pause_s, self.fails = pause_s, fails
        self.batches = batches if batches is not None else []
        self.schedule, self.suffix = range(4), ".mp4"

    def batch_for(self, size: tuple[int, int, int]) -> int:
        return 4

    def encode(self, prompts: Sequence[str], quiet: bool = False) -> list[str]:
        return list(prompts)

    def denoise(
        self, rows: Any, seeds: Sequence[int], size: Any, on_step: Callable[[int, Any], None]
    ) -> list[Latents]:
        self.batches.append(list(seeds))
        if (error := self.fails(seeds)) is not None:
            raise error
        for step in self.schedule:
            time.sleep(self.pause_s)
            on_step(step, None)
        return [Latents(seed) for seed in seeds]

    def decode_each(self, latents: Sequence[Latents]) -> Iterator[Iterator[Any]]:
        for one in latents:
            yield iter([np.full((5, 32, 32, 3), one.seed % 256, np.uint8)] * 2)


class OneStudent:
    """The same student for all weights and LoRAs; notes which were asked for."""

    def __init__(self, student: Any) -> None:
        self.student = student
        self.asked: list[tuple[str, str | None]] = []

    def get(self, model: str, lora: str | None, size: Any = None, count: int = 1) -> Any:
        self.asked.append((model, lora))
        return self.student

    def batch_for(self, model: str, size: tuple[int, int, int]) -> int:
        return int(self.student.batch_for(size))


def make_maker(backend: Backend, student: Any, pipe: Connection, worker: str = "w") -> Maker:
    return Maker(OneStudent(student), backend.store, backend.results, worker, pipe)
