"""Twenty SIGKILLs at random moments, and the run that comes out."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.job.schema import Job
from tests.parallel.ranks import Started, start_ranks
from tests.training import _distill, assert_same_run, make_job, needs_deepspeed, train

pytestmark = [needs_deepspeed, pytest.mark.slow]

KILLS = 20
MOMENTS = ("starting", "training", "saving", "saving")
SETTINGS = (
    *("train.iterations=100000", "train.checkpoint_every=1", "train.sample_every=1000"),
    *("train.micro_batch=1", "parallel.strategy=zero3"),
)


def steps_of(run: Path) -> list[int]:
    """The steps in ``metrics.jsonl``, without a last line that was cut off."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return [json.loads(line)["step"] for line in lines]


def saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step_*.partial"))


def wait_for(moment: str, run: Path, before: int, rng: random.Random, ranks: Started) -> bool:
    """Waits for a moment of that kind, after an iteration or more; False if the run ended."""
    if moment == "starting":
        time.sleep(rng.uniform(0, 4))
    else:
        iterations = rng.randrange(1, 3)
        while all(process.is_alive() for process in ranks.processes):
            steps = steps_of(run)
            if steps and steps[-1] >= before + iterations:
                break
            time.sleep(0.002)
        while moment == "saving" and not saving(run) and ranks.processes[0].is_alive():
            pass
        time.sleep(rng.uniform(0, 0.02 if moment == "saving" else 0.3))
    return all(process.is_alive() for process in ranks.processes)


def kill(ranks: Started, rng: random.Random) -> None:
    """One rank, and the other soon after, as a launcher does."""
    victim = rng.choice(ranks.processes)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    time.sleep(rng.uniform(0, 0.5))
    ranks.end()


def last_step(run: Path) -> int:
    """The step of the newest checkpoint; all that are there are whole."""
    found = store.checkpoints(run)
    for folder in found:
        store.verify(folder)
    return store.step_of(found[0]) if found else 0


def finish(job: Job) -> None:
    train(job, 2)


def moments(rng: random.Random) -> Iterator[str]:
    """The moments of the kills, without an end."""
    while True:
        some = [MOMENTS[index % len(MOMENTS)] for index in range(KILLS)]
        rng.shuffle(some)
        yield from some


def test_twenty_kills(tiny_teacher: Path, tmp_path: Path) -> None:
    """More than twenty where the machine is so busy that few of them hit a save."""
    job = make_job(tiny_teacher, tmp_path / "killed", *SETTINGS)
    run, rng = job.output.dir, random.Random(7)
    done, inside = 0, 0
    for number, moment in enumerate(moments(rng)):
        if number >= KILLS and inside >= KILLS // 4:
            break
        assert number < 5 * KILLS, "too few kills were inside a save"
        ranks = start_ranks(2, _distill, job)
        assert wait_for(moment, run, done, rng, ranks), f"it ended by itself: {ranks.results}"
        kill(ranks, rng)
        inside += saving(run)
        steps, saved = steps_of(run), last_step(run)
        assert steps == list(range(1, len(steps) + 1))
        assert saved >= done, "a checkpoint was lost"
        assert len(steps) - saved <= 1, "more than one interval was lost"
        done = saved
    assert done >= 5
    folders = {name: tmp_path / name for name in ("killed", "straight")}
    last = f"train.iterations={done + 3}"
    runs = {
        name: make_job(tiny_teacher, folder, *SETTINGS, last) for name, folder in folders.items()
    }
    for each in runs.values():
        finish(each)
    assert not list((run / "checkpoints").glob("*.damaged"))
    assert_same_run(run, runs["straight"].output.dir)
