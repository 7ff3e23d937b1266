from __future__ import annotations

from pathlib import Path

import pytest
import torch

import distill.running.run
import infer.batch.generate_files
from lightx2v_sgmd.cli.doctor import checks as doctor
from lightx2v_sgmd.system import torch_faults
from tests.students import generate
from tests.training import make_job, train

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("release", "cuda", "cudnn", "slow"),
    [
        ("2.8.0+cu128", "12.8", 91002, False),
        ("2.9.0+cu130", "13.0", 91500, True),
        ("2.9.1", "13.0", 91300, True),
        ("2.9.1", "13.0", 91500, False),
        ("2.9.1+cpu", None, None, False),
        ("2.10.0", "13.0", 91501, False),
    ],
)
def test_the_releases_whose_3d_convolutions_are_slow(
    monkeypatch: pytest.MonkeyPatch, release: str, cuda: str | None, cudnn: int | None, slow: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", release)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    assert (torch_faults.slow_conv3d(GPU) is not None) == slow
    assert torch_faults.slow_conv3d(CPU) is None
    found = {check.name: check for check in doctor._devices()}
    assert ("3D convolutions" in found) == slow
    if slow:
        check = found["3D convolutions"]
        assert check.state == "missing" and "166643" in check.detail and "torch" in check.remedy


@pytest.mark.slow
def test_training_says_it_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_teacher: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(distill.running.run, "slow_conv3d", lambda device: f"slow on {device}")
    job = make_job(tiny_teacher, tmp_path, "train.iterations=1", "train.sample_every=1")
    distill.distill(job)
    assert capsys.readouterr().err.count("slow on cpu") == 1
    train(make_job(tiny_teacher, tmp_path / "quiet", "train.iterations=1"))
    assert "slow on cpu" not in capsys.readouterr().err


def test_generating_says_it_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_teacher: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(
        infer.batch.generate_files, "slow_conv3d", lambda device: f"slow on {device}"
    )
    for quiet, times in ((False, 1), (True, 0)):
        generate(
            tiny_teacher,
            ["a red circle", "a blue square"],
            tmp_path / str(quiet),
            assume_schedule="sgmd",
            height=32,
            width=32,
            num_frames=5,
            quiet=quiet,
        )
        assert capsys.readouterr().err.count("slow on cpu") == times
