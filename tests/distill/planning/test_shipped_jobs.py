"""Every shipped job fits on the GPUs that its header names, by its plan."""

from __future__ import annotations

import re
from functools import cache

import pytest

from distill.planning.model_meter import ModelMeter
from distill.planning.nearest import check_plan
from distill.planning.plan import Machine, make_plan
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.resources import config_path, shipped_jobs


@cache
def meter_of(teacher: str) -> ModelMeter:
    """One for all jobs of a teacher: they share most measurements."""
    return ModelMeter(open_model(teacher))


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_jobs())
def test_a_shipped_job_fits_where_its_header_says(name: str) -> None:
    path = config_path(name)
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    (found,) = re.findall(r"^# Fits on (\d+) GPUs? of (\d+) GiB", header, re.MULTILINE)
    gpus, memory_gib = map(int, found)
    job = load_job(path)
    meter = meter_of(job.teacher.path)
    plan = make_plan(job, meter.model, Machine(gpus=gpus, memory_gib=memory_gib), meter)
    check_plan(plan, meter.model, meter)
