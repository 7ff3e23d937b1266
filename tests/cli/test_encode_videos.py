"""The command ``encode-videos``; the latents are tested in ``tests/distill``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill import encoded_videos
from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.system.resources import config_path
from tests.cli.application import Application


def test_options_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = Application(Path("latents"))
    monkeypatch.setattr(encoded_videos, "encode_videos", encode)
    command = ["encode-videos", "clips", "--job", str(config_path("sprites_dmd2.yaml"))]
    more = ["--shard", "16", "--set", "train.seed=3", "--quiet"]
    assert run([*command, "--out", "latents", *more]) == 0
    assert capsys.readouterr().out == "latents\n"
    assert run([*command, "--out", "latents", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"latents": "latents"}
    ((videos, job, *given), _), ((_, _, *usual), _) = encode.calls
    assert (videos, job.train.seed) == (Path("clips"), 3)
    assert given == [Path("latents"), 16, True] and usual == [Path("latents"), 64, False]
