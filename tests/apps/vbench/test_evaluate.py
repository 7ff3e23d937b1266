"""``evaluate --vbench`` from end to end with a tiny student: shards, videos, results, report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lightx2v_sgmd.apps.evaluation.options import EvaluateOptions
from lightx2v_sgmd.apps.evaluation.shards import Shard
from lightx2v_sgmd.apps.vbench import VBenchOptions, evaluate_vbench
from lightx2v_sgmd.cli import main
from lightx2v_sgmd.measures.vbench import DIMENSIONS
from lightx2v_sgmd.system.errors import UserError
from tests.apps.vbench import test_results, test_suite

ENTRIES = [{"prompt_en": "a red circle", "dimension": list(DIMENSIONS)}]
OPTIONS = EvaluateOptions(seed=40, device="cpu", num_frames=5)


def test_shards_make_the_videos_and_results_give_the_total(
    shared_student: Path, tmp_path: Path
) -> None:
    info, out = test_suite.write(tmp_path, ENTRIES), tmp_path / "out"
    shard = VBenchOptions(info, shard=Shard(2, 2))
    assert evaluate_vbench(shared_student, out, shard, OPTIONS, quiet=True) is None
    assert sorted(p.name for p in out.rglob("*.mp4")) == [
        f"000{i}_a_red_circle.mp4" for i in range(3)
    ]
    seeds = {p.name: json.loads(p.read_text())["seed"] for p in out.rglob("000*.json")}
    assert seeds == {f"000{i}_a_red_circle.json": 42 + i for i in range(3)}

    # Without a shard the others are made; nothing measures them yet.
    found = evaluate_vbench(shared_student, out, VBenchOptions(info), OPTIONS, quiet=True)
    assert found is not None and found["vbench"]["aggregate"]["total"] is None
    links = out / "vbench" / "videos"
    assert sorted(p.name for p in links.iterdir()) == [f"a red circle-{i}.mp4" for i in range(5)]
    assert len({p.resolve() for p in links.iterdir()}) == 5
    about = [
        json.loads(p.resolve().with_suffix(".json").read_text()) for p in sorted(links.iterdir())
    ]
    assert [item["seed"] for item in about] == [40, 41, 42, 43, 44]

    # Results of another machine, one video short in one dimension.
    for name in DIMENSIONS:
        short = name == "scene"
        content = {name: test_results.entry(0.9, 4 if short else 5)}
        test_results.write(tmp_path / "theirs", name, content)
    read = VBenchOptions(info, results=(tmp_path / "theirs",))
    found = evaluate_vbench(shared_student, out, read, OPTIONS, quiet=True)
    assert found is not None and found == json.loads((out / "metrics.json").read_text())
    assert found["vbench"]["dimensions"]["scene"]["missing"] == 1
    total = found["vbench"]["aggregate"]["total"]
    assert f"{100 * total:.2f}" in (out / "report.html").read_text()
    setup = found["vbench"]["setup"]
    assert (setup["prompt_augmentation"], setup["nfe"], setup["first_seed"]) == (None, 4, 40)

    # The same videos, moved and named for VBench, one of them lost.
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in sorted(links.iterdir())[1:]:
        (moved / path.name).write_bytes(path.read_bytes())
    found = evaluate_vbench(moved, tmp_path / "again", read, OPTIONS, quiet=True)
    assert found is not None
    assert found["vbench"]["videos"] == {"wanted": 5, "there": 4, "missing": 1}
    with pytest.raises(UserError, match="--shard: is for making videos"):
        evaluate_vbench(moved, tmp_path / "again", shard, OPTIONS, quiet=True)


def test_a_teachers_videos_are_made_once_by_its_own_sampler(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    info, out = test_suite.write(tmp_path, ENTRIES), tmp_path / "out"
    options = replace(OPTIONS, steps=1, guidance_scale=2.0, height=32, width=32)

    def run() -> dict[str, Any]:
        found = evaluate_vbench(tiny_teacher, out, VBenchOptions(info), options, quiet=True)
        assert found is not None
        setup: dict[str, Any] = found["vbench"]["setup"]
        return setup

    setup = run()
    assert (setup["kind"], setup["nfe"], setup["guidance_scale"]) == ("teacher", 2, 2)
    assert len(list((out / "vbench" / "videos").iterdir())) == 5
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4") if not path.is_symlink()}
    assert len(made) == 5 and run() == setup
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--prompts", "p", "--shard", "1/2", "--nproc", "2"], "--nproc: makes all videos"),
        ([], "--prompts: is missing"),
        (["--vbench", "x", "--prompts", "y"], "--prompts: has no meaning with --vbench"),
        (["--vbench", "x", "--shard", "3/2"], "is not K/N"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(main.app, ["evaluate", "--weights", "w", "--out", "o", *arguments])
    assert isinstance(result.exception, UserError) and reason in str(result.exception)
