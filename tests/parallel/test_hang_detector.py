"""The hang detector names the rank that is to blame when nothing moves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch.distributed as dist

from lightx2v_sgmd.parallel import Ranks, Watch, hang_detector
from lightx2v_sgmd.parallel.hang_detector import PATIENCE, Diagnosis, HangDetector, Heartbeat

HEARTBEATS = [Heartbeat(rank, host, 1, 5, f"step {rank}") for rank, host in enumerate("aabb")]


def diagnosed(
    changes: dict[int, dict[str, Any]], until_s: int, timeout_s: float = 60.0
) -> tuple[int, Diagnosis] | None:
    """The first diagnosis and when it came, if all ranks go on except for ``changes``."""
    detector = HangDetector(timeout_s, interval_s=1.0, now=0.0)
    for now in range(until_s):
        beats = [
            replace(heartbeat, **{"pulse": now, "count": now, **changes.get(heartbeat.rank, {})})
            for heartbeat in HEARTBEATS
        ]
        if diagnosis := detector.check(beats, float(now)):
            return now, diagnosis
    return None


def test_ranks_that_move_are_left_alone() -> None:
    assert diagnosed({}, until_s=500) is None


def test_one_rank_that_moves_is_enough() -> None:
    """The other ranks wait for it."""
    assert diagnosed({rank: {"count": 7} for rank in (0, 1, 3)}, until_s=500) is None


def test_the_one_that_is_behind_is_named() -> None:
    hung = {rank: {"count": 7} for rank in (0, 1, 3)} | {2: {"count": 6, "doing": "step 4"}}
    found = diagnosed(hung, until_s=500)
    assert found is not None
    assert found[0] == 60 and found[1].ranks == {2}
    assert "nothing has moved for 1 min 00 s: rank 2 on b is the furthest behind, at step 4" in (
        found[1].message
    )


def test_loading_has_patience() -> None:
    hung = {rank: {"count": 7, "patient": rank == 0} for rank in range(4)}
    found = diagnosed(hung, until_s=1000)
    assert found is not None and found[0] == 60 * PATIENCE
    assert "every rank is at step 0" in found[1].message


@pytest.mark.parametrize(("timeout_s", "noticed_s"), [(60.0, 60), (3600.0, 120)])
def test_silent_ranks_are_named_though_others_move(timeout_s: float, noticed_s: int) -> None:
    found = diagnosed({1: {"pulse": 3}, 3: {"pulse": 3}}, 4000, timeout_s)
    assert found is not None
    assert found[0] == noticed_s and found[1].ranks == {1, 3}
    assert "no sign of rank 1 on a, rank 3 on b for" in found[1].message
    assert "rank 3 on b was last at step 3" in found[1].message


def test_a_machine_that_slept_accuses_nobody() -> None:
    detector = HangDetector(60.0, interval_s=1.0, now=0.0)
    assert detector.check(HEARTBEATS, 1.0) is None
    assert detector.check(HEARTBEATS, 5000.0) is None  # all of us were stopped
    assert detector.check(HEARTBEATS, 5001.0) is None


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.slow
def test_one_process_that_hangs() -> None:
    told: list[tuple[str, bool]] = []
    watch = Watch(Ranks(), 2 / 60, lambda *diagnosis: told.append(diagnosis))
    watch.tick("step 1")
    for _ in range(50):
        time.sleep(0.05)
        watch.tick("step 2, micro-batch 1 of 1")
    assert told == []
    wait_until(lambda: bool(told))
    watch.close()
    ((message, speaks),) = told
    assert speaks and "it hangs at step 2, micro-batch 1 of 1; " in message


class TwoRanks(Ranks):
    """One of two ranks that are in one process and need no process group."""

    def barrier(self) -> None:
        pass


def test_a_rank_that_stops_right_after_a_step_is_named_at_that_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(hang_detector, "_open_store", lambda ranks: store)
    messages: list[str] = []
    watches = [
        Watch(TwoRanks(rank, 2), 2 / 60, lambda message, prints: messages.append(message))
        for rank in (1, 0)
    ]
    with watches[0].patient("loading"):
        pass
    watches[0].tick("step 2, micro-batch 1 of 1")
    watches[0].close()  # its threads write nothing more
    wait_until(lambda: bool(messages))
    watches[1].close()
    assert "was last at step 2, micro-batch 1 of 1; " in messages[0]


def test_null_watches_nothing() -> None:
    watch = Watch(Ranks(), None, partial(pytest.fail, "watched"))
    watch.tick("step 1")
    with watch.patient("loading"):
        watch.leave("because")
    error = RuntimeError("gloo")
    assert watch.explain(error) is error
    watch.close()
