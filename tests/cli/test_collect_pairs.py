"""The command ``collect-pairs``; the pairs are tested in ``tests/distill/test_ode_pairs.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill import ode_pairs
from distill.ode_pairs import PairPlan
from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.system.resources import config_path
from tests.cli.application import Application

COMMAND = ["collect-pairs", str(config_path("sprites_adp.yaml")), "--out", "pairs"]


def test_options_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collect = Application(Path("pairs"))
    monkeypatch.setattr(ode_pairs, "collect_pairs", collect)
    sampler = ["--steps", "20", "--solver", "unipc", "--shift", "5"]
    shares = ["--count", "96", "--shard", "16", "--part", "2/8", "--prompts", "p.txt"]
    assert run([*COMMAND, *sampler, *shares, "--set", "train.seed=3", "--quiet"]) == 0
    assert capsys.readouterr().out == "pairs\n"
    assert run([*COMMAND, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pairs": "pairs"}
    ((job, *given), _), ((_, *usual), _) = collect.calls
    assert job.train.seed == 3
    assert given == [Path("pairs"), PairPlan(96, 20, "unipc", 5.0, 16, 2, 8), "p.txt", True]
    assert usual == [Path("pairs"), PairPlan(), None, False]


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b"])
def test_a_part_that_is_none(capsys: pytest.CaptureFixture[str], part: str) -> None:
    assert run([*COMMAND, "--part", part]) == 2
    assert f"--part: '{part}' is not K/N" in capsys.readouterr().err
