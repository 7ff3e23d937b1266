"""The bundled teacher of motions opens by its name, with the parts of the first one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightx2v_sgmd.families.sources.model_folder import model_folder
from lightx2v_sgmd.families.wan.opening import SHARING, bundled_teacher, open_wan
from lightx2v_sgmd.system.errors import UserError


@pytest.mark.parametrize("name", SHARING)
def test_a_transformer_of_its_own_over_shared_parts(name: str) -> None:
    folder = model_folder(name)
    assert folder.is_dir() and folder.parent == bundled_teacher().parent
    first, model = open_wan("sprites"), open_wan(name)
    assert model == open_wan(folder) and model.path == str(folder)
    (file,) = model.source.files("transformer")
    assert file.parent == folder / "transformer" and file.stat().st_size <= 8_000_000
    for part in ("vae", "text_encoder"):
        assert model.source.files(part) == first.source.files(part)
        assert not (folder / part).exists()
    assert model.source.tokenizer() == first.source.tokenizer()
    assert model.transformer_config == first.transformer_config
    assert model.authors_sampler == first.authors_sampler == ("euler", 3.0)
    assert model.video == first.video and model.negative_prompt == ""


def test_a_copy_of_the_folder_is_not_a_whole_model(tmp_path: Path) -> None:
    """Only the shipped folder has parts elsewhere: a stranger's folder names no other one."""
    copy = shutil.copytree(model_folder("motions"), tmp_path / "motions")
    with pytest.raises(UserError, match=r"vae/config\.json: is missing"):
        open_wan(copy)
