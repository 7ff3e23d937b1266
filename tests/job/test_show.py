"""``job show`` prints the whole job and where each value comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightx2v_sgmd.job.loading import load_job, load_job_with_origins
from lightx2v_sgmd.job.show import annotated_yaml, leaf_origins
from lightx2v_sgmd.system.resources import config_path, shipped_jobs
from tests.job.test_inheritance import FULL, write


@pytest.mark.parametrize("name", shipped_jobs())
def test_what_is_shown_is_the_job_and_says_where_it_comes_from(name: str, tmp_path: Path) -> None:
    job, origins = load_job_with_origins(config_path(name), ["train.seed=7"])
    shown = annotated_yaml(job, origins)
    assert load_job(write(tmp_path, "shown.yaml", shown)) == job
    assert yaml.safe_load(shown)["train"]["seed"] == 7
    (seed,) = [line for line in shown.splitlines() if line.startswith("  seed: ")]
    assert seed.endswith("# --set")
    places = leaf_origins(job, origins)
    assert places["train.clip"] != "default" and places["train.keep_checkpoints"] == "default"
    assert places["train.clip"].startswith(str(config_path(name).parent))
    if name not in FULL:
        assert name in places["output.dir"] and name not in places["train.clip"]


def test_a_text_of_several_lines_is_shown_whole(tmp_path: Path) -> None:
    prompt = json.dumps("first\nsecond # not a comment")
    settings = [f"teacher.negative_prompt={prompt}", "output.dir='a # b'"]
    job, origins = load_job_with_origins(config_path("sprites_sgmd.yaml"), settings)
    shown = annotated_yaml(job, origins)
    assert load_job(write(tmp_path, "shown.yaml", shown)) == job
