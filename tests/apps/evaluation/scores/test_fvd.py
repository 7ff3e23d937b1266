"""FVD with a TorchScript file that has I3D's call and features that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightx2v_sgmd.apps.evaluation import EvaluateOptions, evaluate
from lightx2v_sgmd.apps.evaluation.scores.fvd import check_i3d, i3d_features, load_i3d
from lightx2v_sgmd.files.video import write_video
from lightx2v_sgmd.system.errors import UserError


class Means(torch.nn.Module):
    """Each channel's mean, scaled as I3D's file does, in place of the 400 logits."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        assert rescale and resize and return_features
        assert x.dim() == 5 and x.size(1) == 3
        return (2 * x / 255 - 1).mean([2, 3, 4])


@pytest.fixture
def i3d(tmp_path: Path) -> Path:
    torch.jit.script(Means()).save(str(tmp_path / "i3d.pt"))
    return tmp_path / "i3d.pt"


def grey(level: int) -> np.ndarray:
    return np.full((9, 32, 32, 3), level, np.uint8)


def test_the_network_gets_channels_first_from_0_to_255(i3d: Path) -> None:
    video = np.zeros((9, 4, 6, 3), np.uint8)
    video[..., 0], video[:3, ..., 1] = 255, 255
    features = i3d_features(load_i3d(i3d, "cpu"), video, "cpu")
    np.testing.assert_allclose(features, [1, -1 / 3, -1], atol=1e-6)


@pytest.mark.slow
def test_a_gaussian_has_its_known_distance(i3d: Path, tmp_path: Path) -> None:
    """Grey videos: three equal features each, so the distance is three times that of one.

    In one dimension it is (difference of means)^2 + (difference of standard deviations)^2.
    """
    levels = {"a": [60, 80, 100, 120], "b": [120, 130, 140, 150]}
    for name, values in levels.items():
        for index, level in enumerate(values):
            write_video(grey(level), tmp_path / name / f"{index}.mp4", 8)
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\nfour\n")
    result = evaluate(
        tmp_path / "a",
        tmp_path / "p.txt",
        tmp_path / "out",
        against=tmp_path / "b",
        options=EvaluateOptions(metrics=("fvd",), i3d=i3d, device="cpu"),
        quiet=True,
    ).metrics
    first, second = (np.array(values) * 2 / 255 for values in levels.values())
    spread = first.std(ddof=1) - second.std(ddof=1)
    expected = 3 * ((first.mean() - second.mean()) ** 2 + spread**2)
    assert result["fvd"]["distance"] == pytest.approx(expected, rel=0.03)
    assert result["fvd"]["videos"] == [4, 4] and "frechet" not in result


def test_one_video_has_no_distance(i3d: Path, tmp_path: Path) -> None:
    for side in ("a", "b"):
        write_video(grey(80), tmp_path / side / "0.mp4", 8)
    (tmp_path / "p.txt").write_text("one\n")
    paths = (tmp_path / "a", tmp_path / "p.txt", tmp_path / "out")
    with pytest.raises(UserError, match="frechet and fvd need two videos or more; add prompts"):
        options = EvaluateOptions(metrics=("fvd",), i3d=i3d)
        evaluate(*paths, against=tmp_path / "b", options=options, quiet=True)
    assert not (tmp_path / "out").exists()
    options = EvaluateOptions(i3d=i3d, device="cpu")
    found = evaluate(*paths, against=tmp_path / "b", options=options, quiet=True).metrics
    assert "fvd" not in found and "optflow" in found["metrics"] and "fvd" not in found["metrics"]


def test_another_file_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for side in ("a", "b"):
        write_video(grey(80), tmp_path / side / "0.mp4", 8)
    (tmp_path / "p.txt").write_text("one\n")
    paths = (tmp_path / "a", tmp_path / "p.txt", tmp_path / "out")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    for name in ("p.txt", "weights.pt"):
        options = EvaluateOptions(i3d=tmp_path / name)
        with pytest.raises(UserError, match="--i3d: .* is not a TorchScript file; name StyleGAN"):
            evaluate(*paths, against=tmp_path / "b", options=options, quiet=True)
    assert not (tmp_path / "out").exists()


def test_videos_that_would_be_too_short_are_refused(i3d: Path) -> None:
    check_i3d(i3d, (81, 9))
    with pytest.raises(
        UserError, match="--num-frames: videos would have 5 frames, and FVD needs 9"
    ):
        check_i3d(i3d, (81, 5))


def test_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"no program")
    with pytest.raises(UserError, match="cannot be loaded as TorchScript"):
        load_i3d(tmp_path / "x.pt", "cpu")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "linear.pt"))
    with pytest.raises(UserError, match="the network failed"):
        i3d_features(load_i3d(tmp_path / "linear.pt", "cpu"), grey(9), "cpu")
