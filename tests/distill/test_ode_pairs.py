"""ODE pairs: the teacher's samples, collected in parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.ode_pairs import PairPlan
from lightx2v_sgmd.cli.main import run as run_cli
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.latents import LatentFolder, shard_path
from lightx2v_sgmd.sampling.sampler import VideoSampler
from lightx2v_sgmd.sampling.teacher_steps import teacher_schedule
from lightx2v_sgmd.sampling.unipc import UniPC
from lightx2v_sgmd.system.errors import UserError
from tests.pairs import collect
from tests.training import job_file


def test_pairs_are_the_teachers_samples(tiny_teacher: Path, pairs: Path) -> None:
    folder = LatentFolder(pairs)
    assert len(folder) == 6 and folder.has_noise and len(folder.prompts) == 6
    model = open_wan(str(tiny_teacher))
    sampler = VideoSampler(model, teacher_schedule(steps=2), (32, 32, 5), 8.0)
    made = sampler.latents(folder.prompts[4:], folder.read("noise", [4, 5]))
    torch.testing.assert_close(folder.read("x0", [4, 5]), made)
    assert not torch.equal(folder.read("noise", [0]), folder.read("noise", [4]))


def test_pairs_by_another_solver_are_its_samples_and_say_so(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(tiny_teacher, tmp_path, tmp_path / "pairs", "--solver", "unipc", "--shift", "5")
    said = capsys.readouterr().err
    assert "the teacher samples with UniPC, 2 steps, shift 5, guidance 8" in said
    folder = LatentFolder(tmp_path / "pairs")
    assert folder.origin["schedule"] == {"solver": "unipc", "shift": 5.0, "steps": 2}
    sampler = VideoSampler(open_wan(str(tiny_teacher)), UniPC(5.0, 2), (32, 32, 5), 8.0)
    made = sampler.latents(folder.prompts[4:], folder.read("noise", [4, 5]))
    torch.testing.assert_close(folder.read("x0", [4, 5]), made)


def test_collecting_goes_on_where_it_stopped(
    tiny_teacher: Path, tmp_path: Path, pairs: Path
) -> None:
    out = tmp_path / "pairs"
    collect(tiny_teacher, tmp_path, out, "--part", "2/2")
    assert not shard_path(out, 0).exists() and shard_path(out, 1).exists()
    before = shard_path(out, 1).stat().st_mtime_ns
    collect(tiny_teacher, tmp_path, out)
    assert shard_path(out, 1).stat().st_mtime_ns == before
    ours, theirs = LatentFolder(out), LatentFolder(pairs)
    assert torch.equal(ours.read("x0", range(6)), theirs.read("x0", range(6)))


@pytest.mark.parametrize("part", ["0/2", "3/2", "a/b", "1", "1/0"])
def test_a_part_that_is_none_is_refused(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    job = str(job_file(tiny_teacher, tmp_path))
    assert run_cli(["collect-pairs", job, "--out", str(tmp_path / "x"), "--part", part]) == 2
    err = capsys.readouterr().err
    assert f"--part: '{part}' is not K/N" in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_pairs_of_other_settings_are_not_mixed(tiny_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    collect(tiny_teacher, tmp_path, out)
    job = str(job_file(tiny_teacher, tmp_path))
    again = ["--count", "6", "--steps", "3", "--shard", "4"]
    shard_path(out, 1).unlink()
    assert run_cli(["collect-pairs", job, "--out", str(out), *again]) == 2


@pytest.mark.parametrize("option", ["count", "steps"])
def test_numbers_without_end_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"--{option}: 1000000000000 is more than"):
        replace(PairPlan(), **{option: 10**12})  # type: ignore[arg-type]
