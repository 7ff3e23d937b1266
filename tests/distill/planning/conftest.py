from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distill.planning.model_meter import ModelMeter
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.resources import config_path


@pytest.fixture(scope="session")
def wan_1_3b() -> tuple[Job, Any, ModelMeter]:
    """SGMD of Wan2.1-1.3B, the model, and a meter that remembers what others measured."""
    job = load_job(config_path("wan2.1_t2v_1.3b_sgmd.yaml"))
    parallel = replace(job.parallel, sequence=1, gradient_checkpointing=True, offload="none")
    model = open_wan(job.teacher.path)
    return replace(job, parallel=parallel), model, ModelMeter(model)
