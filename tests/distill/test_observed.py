"""Listeners hear each pass of a real strategy, in order, and know which ones are inside another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.observed import Event, Listener, ReportProgress, StopOnRequest, Stopped
from lightx2v_sgmd.parallel.ranks import Ranks
from tests.training import make_job, make_trainer


class Recorder(Listener):
    def __init__(self) -> None:
        self.begun: list[Event] = []
        self.ended: list[Event] = []

    def before(self, event: Event) -> None:
        self.begun.append(event)

    def after(self, event: Event) -> None:
        self.ended.append(event)


def test_an_iteration_of_sgmd_in_events(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer, recorder = make_trainer(make_job(tiny_teacher, tmp_path)), Recorder()
    trainer.listen(recorder)
    steps = trainer.batches.exit_step(0) + 1
    trainer.iterate(0)
    told = [f"{event.action} {event.role}" for event in recorder.begun if not event.nested]
    assert told == [
        *["forward student"] * steps,
        "forward teacher",
        "gradient fake_score",
        "backward fake_score",
        "backward student",
        "step student",
        "step fake_score",
        "average student",
    ]
    assert sorted(map(str, recorder.begun)) == sorted(map(str, recorder.ended))


def test_a_teacher_inside_a_loss_is_nested_and_nobody_stops_there(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    job = make_job(tiny_teacher, tmp_path, "method={name: sid}")
    trainer, recorder = make_trainer(job), Recorder()
    teacher = Event("forward", "teacher", nested=True)
    stop = StopOnRequest(trainer.strategy.ranks, lambda: teacher in recorder.begun)
    trainer.listen(stop, recorder)
    with pytest.raises(Stopped):
        trainer.iterate(0)
    assert teacher in recorder.ended  # it stopped after the pass around it
    assert trainer.partial_iteration is None


def test_a_pass_that_fails_does_not_hide_later_ones(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer, recorder = make_trainer(make_job(tiny_teacher, tmp_path)), Recorder()
    trainer.listen(recorder)
    strategy: Any = trainer.strategy
    with pytest.raises(AttributeError):
        strategy.velocity("nobody", None, None, None)
    assert recorder.ended == []
    strategy.update_average(0.9)
    assert recorder.ended == [Event("average", "student")]  # not nested in the one that failed


def test_the_place_is_reported_before_each_pass() -> None:
    said: list[str] = []
    report = ReportProgress(lambda: "step 3, update 1 of 2", said.append)
    report.before(Event("forward", "student"))
    report.before(Event("step", "fake_score"))
    assert said == ["step 3, update 1 of 2", "step 3, update 1 of 2, stepping the fake_score"]


def test_only_passes_ask_whether_to_stop() -> None:
    stop = StopOnRequest(Ranks(), lambda: True)
    for event in (Event("step", "student"), Event("heads", "discriminator")):
        stop.after(event)
    with pytest.raises(Stopped):
        stop.after(Event("backward", "student"))
