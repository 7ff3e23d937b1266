"""Files that ship with the package are found by name."""

from __future__ import annotations

import pytest

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path, shipped_jobs, shipped_model


def test_jobs_and_prompts_are_found() -> None:
    assert "sprites_sgmd.yaml" in shipped_jobs() == sorted(shipped_jobs())
    assert all(config_path(name).is_file() for name in shipped_jobs())
    assert config_path("prompts/examples.txt").is_file()


def test_another_job_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"x\.yaml: is not a shipped job; .* sprites_sgmd\.yaml"):
        config_path("x.yaml")


def test_a_shipped_model_has_a_name() -> None:
    folder = shipped_model("sprites")
    assert folder is not None and (folder / "model_index.json").is_file()
    assert shipped_model("prompts") is None and shipped_model("../assets/sprites") is None
