"""The command ``embed``; what it encodes is tested with the cache, in ``tests/text``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.files.prompts import read_prompts
from lightx2v_sgmd.system.resources import config_path
from lightx2v_sgmd.text import encoding
from lightx2v_sgmd.text.encoding import Filled
from tests.cli.application import Application

SPRITES = str(config_path("sprites_sgmd.yaml"))


def test_a_folder_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["embed", SPRITES]) == 2
    err = capsys.readouterr().err
    assert "data.embeddings is not set; name a folder" in err and err.count("\n") == 1


def test_the_jobs_prompts_are_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, cache = tmp_path / "prompts.txt", tmp_path / "cache"
    prompts.write_text("a red circle\na blue square\n")
    embed = Application(Filled(cache / "t5", 3, 2))
    monkeypatch.setattr(encoding, "embed", embed)
    settings = [f"data.prompts={prompts}", f"data.embeddings={cache}"]
    command = ["embed", SPRITES, *(word for each in settings for word in ("--set", each))]
    assert run([*command, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"folder": str(cache / "t5"), "prompts": 3, "encoded": 2}
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(command) == 0 and capsys.readouterr().out == ""  # the first process speaks
    for (model, texts, ranks, _, folder, quiet), rank in zip(
        [args for args, _ in embed.calls], (0, 1), strict=True
    ):
        assert texts == [*read_prompts(prompts), model.negative_prompt]
        assert (ranks.rank, ranks.size) == (rank, rank + 1)
        assert (Path(folder), quiet) == (cache, rank == 0)
