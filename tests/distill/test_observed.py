"""Listeners hear each pass of a real strategy, in order, and know which ones are inside another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from distill.observed import Event, Listener, Observed, ReportProgress, StopOnRequest, Stopped
from lightx2v_sgmd.interpolants import FLOW
from lightx2v_sgmd.parallel.ranks import Ranks
from tests.training import make_job, make_trainer


class Recorder(Listener):
    def __init__(self) -> None:
        self.started: list[Event] = []
        self.ended: list[Event] = []

    def before(self, event: Event) -> None:
        self.started.append(event)

    def after(self, event: Event) -> None:
        self.ended.append(event)


def test_an_iteration_of_sgmd_in_events(tiny_teacher: Path, tmp_path: Path) -> None:
    trainer, recorder = make_trainer(make_job(tiny_teacher, tmp_path)), Recorder()
    trainer.listen(recorder)
    steps = trainer.batches.exit_step(0) + 1
    trainer.iterate(0)
    told = [f"{event.action} {event.role}" for event in recorder.started if not event.nested]
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
    assert sorted(map(str, recorder.started)) == sorted(map(str, recorder.ended))


def test_a_teacher_inside_a_loss_is_nested_and_nobody_stops_there(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    job = make_job(tiny_teacher, tmp_path, "method={name: sid}")
    trainer, recorder = make_trainer(job), Recorder()
    teacher = Event("forward", "teacher", nested=True)
    stop = StopOnRequest(trainer.strategy.ranks, lambda: teacher in recorder.started)
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
        strategy.predict("nobody", None, None, None)
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


class Fake:
    """A strategy that remembers its calls and answers with their names."""

    settings, ranks, trained, interpolant = "settings", "ranks", ("student",), FLOW
    networks: ClassVar[dict[str, Any]] = {}
    shapes: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def called(*args: Any) -> Any:
            self.calls.append((name, *args))
            return self if name == "fake_score_at" else f"result of {name}"

        return called


CALLS: dict[str, tuple[tuple[Any, ...], str | None]] = {
    # By method, its arguments and the event that tells of it.
    "predict": (("teacher", "x", "time", "conditioning"), "forward teacher"),
    "logits": (("x", "sigma", "text", True), "heads discriminator"),
    "frame_logits": (("features", False), "heads pixel_discriminator"),
    "gradient": (("loss", "x0"), "gradient discriminator"),
    "backward": (("student", "loss"), "backward student"),
    "step": (("fake_score", 0.1), "step fake_score"),
    "update_average": ((0.5, "student"), "average student"),
    "gradient_norm": (("student",), None),
    "averaged_student": ((), None),
    "whole_tensors": (("student", True, {"a": 1}), None),
    "save_slices": (("student",), None),
    "load": (("checkpoint", {"student": 2}), None),
    "close": ((), None),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_the_strategy_s_own_and_told_of(name: str) -> None:
    fake, recorder = Fake(), Recorder()
    strategy: Any = Observed(fake, [recorder])  # type: ignore[arg-type]
    arguments, event = CALLS[name]
    answer = getattr(strategy, name)(*arguments)
    assert fake.calls == [(name, *arguments)]
    silent = ("update_average", "backward", "load", "close")
    assert answer == (None if name in silent else f"result of {name}")
    told = [f"{e.action} {e.role}" for e in recorder.started]
    assert told == ([] if event is None else [event]) and recorder.started == recorder.ended
    assert not any(e.nested for e in recorder.started)


def test_both_passes_of_a_query_are_told_of() -> None:
    fake, recorder = Fake(), Recorder()
    query = Observed(fake, [recorder]).fake_score_at("x0", "x_t", "s", "text")  # type: ignore[arg-type]
    assert query.generator_gradient("loss", True) == "result of generator_gradient"  # type: ignore[arg-type, comparison-overlap]
    query.backward("other")  # type: ignore[arg-type]
    assert fake.calls == [
        ("fake_score_at", "x0", "x_t", "s", "text"),
        ("generator_gradient", "loss", True),
        ("backward", "other"),
    ]
    assert [f"{e.action} {e.role}" for e in recorder.ended] == [
        "gradient fake_score",
        "backward fake_score",
    ]


def test_what_a_strategy_has_is_there_with_listeners_too() -> None:
    fake = Fake()
    strategy: Any = Observed(fake, [])  # type: ignore[arg-type]
    for name in ("settings", "ranks", "trained", "networks", "shapes"):
        assert getattr(strategy, name) is getattr(fake, name)


def test_a_pass_inside_another_is_nested() -> None:
    recorder = Recorder()
    strategy = Observed(Fake(), [recorder])  # type: ignore[arg-type]
    with strategy.event("gradient", "fake_score"):
        with strategy.event("forward", "teacher"):
            pass
        with strategy.event("heads", "discriminator"):
            pass
    with strategy.event("step", "student"):
        pass
    assert [event.nested for event in recorder.started] == [False, True, True, False]
    assert [event.nested for event in recorder.ended] == [True, True, False, False]


@pytest.mark.parametrize("action", ["forward", "gradient", "backward"])
def test_all_ranks_are_asked_after_a_pass_that_is_not_nested(action: Any) -> None:
    asked: list[bool] = []

    class Asking(Ranks):
        def any(self, value: bool) -> bool:
            asked.append(value)
            return len(asked) > 1  # the second time another rank was asked to stop

    stop = StopOnRequest(Asking(), lambda: False)
    stop.after(Event(action, "student", nested=True))
    assert asked == []
    stop.after(Event(action, "student"))
    with pytest.raises(Stopped):
        stop.after(Event(action, "student"))
    assert asked == [False, False]


def test_whole_tensors_are_the_trained_ones_by_default() -> None:
    fake = Fake()
    strategy: Any = Observed(fake, [])  # type: ignore[arg-type]
    strategy.whole_tensors("student")
    assert fake.calls == [("whole_tensors", "student", False, None)]
