from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.job.loading import load_job
from tests.job.minimal import mistake, mistakes


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        (
            "schedule.shift=4",
            "use one of 8 (Wan), 5 (Wan), 3 (SD3), 1 (CogVideoX, SDXL)",
        ),
        (
            "schedule.base=[1000, 400]",
            "use one that falls evenly from 1000, such as [1000, 750, 500, 250]",
        ),
    ],
)
def test_another_schedule_is_refused_with_the_reason(
    file: Path, override: str, remedy: str
) -> None:
    line = mistake(file, override)
    assert "--set" in line or str(file) in line
    assert (
        f"{override.partition('=')[0]}: " in line and "that engine and exported weights run" in line
    )
    assert line.endswith(remedy)


def test_sequence_parallelism_needs_zero3(file: Path) -> None:
    line = mistake(file, "parallel.sequence=2")
    assert "parallel.sequence: 2 needs parallel.strategy zero3, not local" in line
    zero3 = ["parallel.sequence=2", "parallel.strategy=zero3"]
    assert load_job(file, zero3).parallel.sequence == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.lora.rank=8", "student.lora: are for train: lora, not full; leave them out"),
        (
            "video.num_frames=16",
            "16 is not 4k + 1 (the VAE keeps one frame, then takes four); use 13 or 17",
        ),
        ("video.num_frames=15", "15 is not 4k + 1"),
        ("video.width=40", "40 is not divisible by 16"),
        (
            "method.nr_iterations=10",
            "method.nr_iterations: 10 leaves none of the 10 train.iterations to what follows it",
        ),
        ("parallel.offload=all", "all needs parallel.strategy zero3, not local"),
        ("parallel.offload=nvme", "parallel.offload_dir: is missing, but parallel.offload is nvme"),
        ("parallel.offload_dir=disk", "is for parallel.offload nvme, not none; leave it out"),
    ],
)
def test_a_broken_rule_is_one_line(file: Path, override: str, message: str) -> None:
    assert message in "\n".join(mistakes(file, override))
