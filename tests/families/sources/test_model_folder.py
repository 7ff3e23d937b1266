from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lightx2v_sgmd.families.sources.model_folder import (
    PROMPTS_FILE,
    VIDEO_FILE,
    shipped_prompts,
)
from lightx2v_sgmd.families.wan.opening import bundled_teacher, open_wan
from lightx2v_sgmd.families.wan.sampling import NEGATIVE_PROMPT, WAN_FPS
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.system.errors import UserError
from tools.models.train_sprites_teacher import write_facts


def test_the_shipped_facts_are_those_of_the_world(tmp_path: Path) -> None:
    write_facts(tmp_path)
    for name in (VIDEO_FILE, PROMPTS_FILE):
        assert (bundled_teacher() / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_folder_says_what_its_model_was_made_for(tiny_teacher: Path, tmp_path: Path) -> None:
    plain = open_wan(tiny_teacher)
    assert plain.video is None and plain.fps == WAN_FPS
    folder = tmp_path / "model"
    shutil.copytree(tiny_teacher, folder)
    facts = {"height": 48, "width": 32, "num_frames": 5, "fps": 12}
    (folder / VIDEO_FILE).write_text(json.dumps(facts))
    model = open_wan(folder)
    assert model.video == VideoFacts(48, 32, 5, 12.0) and model.fps == 12.0
    assert model.negative_prompt == plain.negative_prompt == NEGATIVE_PROMPT
    (folder / VIDEO_FILE).write_text(json.dumps({**facts, "negative_prompt": "blur"}))
    model = open_wan(folder)
    assert model.negative_prompt_for(None) == "blur" and model.negative_prompt_for("") == ""
    (folder / VIDEO_FILE).write_text(json.dumps({**facts, "negative_prompt": 3}))
    with pytest.raises(
        UserError, match=r"video\.json: negative_prompt is 3, not a text of at most"
    ):
        open_wan(folder)
    (folder / VIDEO_FILE).write_text(json.dumps({**facts, "fps": 0}))
    with pytest.raises(UserError, match=r"video\.json: fps is 0, not a number from 0\.1"):
        open_wan(folder)


@pytest.mark.parametrize("name", ["", ".", "../sprites", "sprites/", "x" * 5000, "a\0b", "other"])
def test_only_a_shipped_name_has_prompts(name: str) -> None:
    assert shipped_prompts(name) is None
