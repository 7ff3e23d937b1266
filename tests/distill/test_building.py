"""What a trainer is built from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distill import building
from distill.building import StartingPoint, build_trainer
from lightx2v_sgmd.cli.main import run as run_cli
from lightx2v_sgmd.families.wan import open_wan
from lightx2v_sgmd.families.wan_sampling import NEGATIVE_PROMPT
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text import encoding
from tests.training import job_file, make_job


class EncodedError(UserError):
    """Ends a command where it would encode prompts."""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that training or ``embed`` encodes."""
    seen: list[str] = []

    def noted(model: Any, prompts: Sequence[str], *rest: Any) -> Any:
        seen.extend(prompts)
        raise EncodedError("enough")

    monkeypatch.setattr(building, "encode_prompts", noted)
    monkeypatch.setattr(encoding, "embed", noted)
    return seen


@pytest.mark.parametrize(
    ("value", "expected"), [("null", NEGATIVE_PROMPT), ('""', ""), ("a blur", "a blur")]
)
def test_guidance_leads_away_from_the_negative_prompt_that_is_asked_for(
    value: str, expected: str, encoded: list[str], tiny_teacher: Path, tmp_path: Path
) -> None:
    setting = f"teacher.negative_prompt={value}"
    job = make_job(tiny_teacher, tmp_path, setting)
    with pytest.raises(EncodedError):
        build_trainer(
            job, open_wan(tiny_teacher), ["a", "b"], None, Ranks(), StartingPoint(), quiet=True
        )
    assert encoded == ["a", "b", expected]
    encoded.clear()
    path = str(job_file(tiny_teacher, tmp_path))
    options = ["--set", setting, "--set", f"data.embeddings={tmp_path / 'kept'}"]
    assert run_cli(["embed", path, *options]) == 2
    assert encoded[-1] == expected
