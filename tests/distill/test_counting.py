"""The passes of an iteration are counted by role."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.counting import PassCounter
from tests.training import make_job, make_trainer


def test_forwards_of_an_iteration(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_job(tiny_teacher, tmp_path, "train.accumulation=2"))
    monkeypatch.setattr(trainer.batches, "exit_step", lambda iteration: iteration)
    counter = PassCounter(trainer.strategy.networks, samples=4)
    for exit_step in range(4):
        trainer.iterate(exit_step)
        assert counter.take()["forwards"] == {
            "student": exit_step + 1,
            "teacher": 2,
            "fake_score": 1,
        }
