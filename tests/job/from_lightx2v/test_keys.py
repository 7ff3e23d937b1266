"""Every key of LightX2V's trainer is mapped, or named as not mapped with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.job.from_lightx2v.keys import COMMIT, MAPPED, UNMAPPED, unmapped
from lightx2v_sgmd.job.loading import job_keys

RECORDED = Path(__file__).with_name("lightx2v_trainer_keys.txt")


def recorded_keys() -> list[str]:
    lines = RECORDED.read_text().splitlines()
    assert COMMIT in lines[0]
    return [line for line in lines if not line.startswith("#")]


def test_every_recorded_key_is_mapped_or_has_a_reason() -> None:
    keys = recorded_keys()
    assert len(keys) > 150
    assert [key for key in keys if key not in MAPPED and unmapped(key) is None] == []


def test_nothing_is_mapped_that_does_not_exist_on_either_side() -> None:
    assert set(MAPPED) - set(recorded_keys()) == set()
    ours = {*job_keys("sgmd"), *job_keys("dmd2"), "--resume"}
    assert set(MAPPED.values()) - ours == set()


def test_every_reason_is_reached_by_a_recorded_key() -> None:
    reached = {entry.pattern for key in recorded_keys() if (entry := unmapped(key))}
    assert {entry.pattern for entry in UNMAPPED} - reached == set()


@pytest.mark.parametrize(
    ("key", "same", "other"),
    [
        ("training.dmd.div_loss.enabled", False, True),
        ("training.dmd.ts_schedule_max", False, True),
        ("training.dmd.min_score_timestep", 0, 20),
        ("training.teacher.cfg_norm", "none", "layer_norm"),
        ("scheduler.time_shift_settings.do_time_shift", True, False),
        ("model.student.checkpoint_path", None, "a.pt"),
    ],
)
def test_a_value_that_changes_the_student_differs(key: str, same: object, other: object) -> None:
    entry = unmapped(key)
    assert entry is not None and not entry.differs(same) and entry.differs(other)


def test_a_value_without_effect_never_differs() -> None:
    entry = unmapped("logging.train_log_every_iters")
    assert entry is not None and not entry.differs(1) and not entry.differs(None)
    assert unmapped("training.max_train_iters") is None and unmapped("training.typo") is None
