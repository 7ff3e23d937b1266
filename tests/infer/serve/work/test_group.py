"""Two processes make the videos of a queue together, and agree on those that nobody wants."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch.distributed as dist

import infer.engine
from infer.options import Options
from infer.serve.jobs import JobStore
from infer.serve.results import Results
from infer.serve.work.group import Leader, check_after, obey
from infer.serve.work.maker import Maker
from infer.serve.work.students import Students
from infer.vae.decoding import Tiling
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.errors import UserError
from tests.infer.serve.standin import WANTED
from tests.parallel.ranks import run_ranks
from tests.students import load_student

ENGINE = Options(device="cpu", text_cache=None)


def work_together(folder: Path, student: Path, ours: Connection, theirs: Connection) -> Any:
    """Both ranks: the first makes four jobs, of which one is deleted and one has no weights."""
    setattr(infer.engine, "Tiling", lambda: Tiling(16, 12))  # noqa: B010  # tiles for both
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    students = Students({"tiny": student}, ENGINE, {}, 1, ranks)
    students.check()
    if not ranks.first:
        obey(students, theirs, ranks)
        return None
    results, leader = Results(folder), Leader(students, ranks, [ours])
    with closing(JobStore(results.queue)) as store:
        results.sweep(store)
        wanted = [replace(WANTED, seed=seed) for seed in (7, 8, 9)]
        names = [store.add(one, 10).id for one in [*wanted, replace(WANTED, model="gone")]]
        told, _pipe = Pipe()
        maker = Maker(leader, store, results, "w", told)
        steps: list[int] = []
        advance = store.advance

        def delete_the_second(worker: str, jobs: Sequence[str], percent: int) -> set[str]:
            steps.append(percent)
            if names[1] in jobs and percent > 20:
                store.delete(names[1])
            return advance(worker, jobs, percent)

        setattr(store, "advance", delete_the_second)  # noqa: B010
        while jobs := store.claim("w", lambda job: 1):
            maker._make(jobs)
        leader.stop()
        found = [store.get(name) for name in names]
        return names, [job and (job.status, job.error) for job in found], steps


def test_a_process_that_refuses_weights_lets_the_first_one_say_so() -> None:
    asked: list[str] = []

    class First:
        def recv(self) -> None:
            asked.append("waited")
            raise EOFError  # it has said so, and ended

    class Refusing:
        def check(self) -> None:
            raise UserError("do not fit")

    with pytest.raises(UserError, match="do not fit"):
        check_after(cast(Any, Refusing()), cast(Any, First()), 1)
    assert asked == ["waited"]


@pytest.mark.slow
def test_two_ranks_make_the_videos_of_one_and_stop_together(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, found, steps = run_ranks(2, work_together, tmp_path, shared_student, *Pipe())
    error = "model: 'gone' is not served any more; ask for another one"
    done = ("completed", None)
    assert found == [done, None, done, ("failed", error)]
    assert steps == [20, 40, 60, 80, 20, 40, 20, 40, 60, 80]
    monkeypatch.setattr("infer.engine.Tiling", lambda: Tiling(16, 12))
    alone = load_student(shared_student, tile_vae=True)
    for name, seed in ((names[0], 7), (names[2], 9)):
        frames, _ = read_video(Results(tmp_path).video(name))
        video = alone.generate(WANTED.prompt, seed=seed)
        expected, _ = read_video(video.save(tmp_path / f"{seed}.mp4"))
        # The video of another seed differs by 9.
        assert np.abs(frames.astype(float) - expected).mean() < 1
