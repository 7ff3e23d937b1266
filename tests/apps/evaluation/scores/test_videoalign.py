"""VideoAlign's scores, with a stand-in for its code that has the same calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightx2v_sgmd.apps.evaluation import EvaluateOptions, evaluate
from lightx2v_sgmd.apps.evaluation.options import chosen_metrics
from lightx2v_sgmd.apps.evaluation.scores import scoring
from lightx2v_sgmd.apps.evaluation.scores.videoalign import SCORES, VideoAlign, weights_folder
from lightx2v_sgmd.files.video import write_video
from lightx2v_sgmd.system.errors import RunError, UserError

# In place of PyTorch, which would take seconds to import.
TORCH = """
from contextlib import nullcontext as no_grad
class cuda:
    is_available = staticmethod(lambda: False)
def load(file, **options):
    return options
"""
CODE = """
import os, torch
def create_model_and_processor(model_config, training_args):
    return training_args.disable_flash_attn2
class Arguments:
    disable_flash_attn2 = False
class VideoVLMRewardInference:
    def __init__(self, folder, device):
        print("what VideoAlign prints is no answer")
        assert os.path.isfile(os.path.join(folder, "model_config.json"))
        self.no_flash = create_model_and_processor(model_config=1, training_args=Arguments())
        self.safe = torch.load("model.pth", map_location="cpu")["weights_only"]
        self.device = device
    def reward(self, videos, prompts):
        if prompts == ["fail"]:
            raise ValueError("no such frames")
        if prompts == ["strange"]:
            return [{"VQ": "high"}]
        size = os.path.getsize(videos[0])
        scores = {"VQ": len(prompts[0]), "MQ": size, "TA": int(self.safe) + self.no_flash}
        return [{**scores, "Overall": sum(scores.values())}]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "VideoAlign"
    weights = folder / "checkpoints" / "VideoReward"
    (weights / "checkpoint-3").mkdir(parents=True)
    (weights / "model_config.json").write_text("{}")
    (weights / "checkpoint-3" / "model.pth").write_bytes(b"x")
    (folder / "inference.py").write_text(CODE)
    (folder / "torch.py").write_text(TORCH)
    return folder


def test_every_video_is_scored_once(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pickled weights are read as tensors alone, without flash-attn on a CPU."""
    for index, level in enumerate((30, 200)):
        video = np.full((3, 16, 16, 3), level, np.uint8)
        write_video(video, tmp_path / "videos" / f"{index}.mp4", 8)
    prompts = tmp_path / "p.txt"
    prompts.write_text("a\nbbb\n")
    options = EvaluateOptions(metrics=tuple(SCORES), videoalign=checkout, device="cpu")
    arguments = (tmp_path / "videos", prompts, tmp_path / "out")
    rows = evaluate(*arguments, options=options, quiet=True).metrics["videos"]
    sizes = [(tmp_path / "videos" / f"{index}.mp4").stat().st_size for index in range(2)]
    for row, length, size in zip(rows, (1, 3), sizes, strict=True):
        scores = {name: row["weights"][name] for name in SCORES}
        assert list(scores.values()) == [length + size + 2, length, size, 2]
    monkeypatch.setattr(scoring, "VideoAlign", None)  # would fail if it were started again
    assert evaluate(*arguments, options=options, quiet=True).metrics["videos"] == rows


def test_its_failures_say_why(checkout: Path, tmp_path: Path) -> None:
    with VideoAlign(checkout, None, "cpu") as scorer:
        with pytest.raises(RunError, match="answered.*published code"):
            scorer.score(tmp_path / "v.mp4", "strange")
        with pytest.raises(RunError, match="failed on .*v.mp4: ValueError: no such frames; try"):
            scorer.score(tmp_path / "v.mp4", "fail")
    with pytest.raises(UserError, match="--videoalign-python: .*cannot be run"):
        VideoAlign(checkout, tmp_path / "python", "cpu")


def test_a_python_that_is_none_is_refused_before_anything_is_measured(
    checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "0.mp4").touch()
    (tmp_path / "p.txt").write_text("one\n")
    options = EvaluateOptions(videoalign=checkout, videoalign_python=tmp_path / "python")
    with pytest.raises(UserError, match="--videoalign-python: .*/python cannot be run; name the"):
        evaluate(tmp_path / "v", tmp_path / "p.txt", tmp_path / "out", options=options, quiet=True)
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkout_is_refused(checkout: Path, tmp_path: Path) -> None:
    assert weights_folder(checkout) == checkout / "checkpoints" / "VideoReward"
    with pytest.raises(UserError, match="--metrics: videoalign_mq needs .* add --videoalign DIR"):
        chosen_metrics(EvaluateOptions(metrics=("videoalign_mq",)), against=True, model=True)
    with pytest.raises(UserError, match="--videoalign-python: has no meaning"):
        EvaluateOptions(videoalign_python=checkout)
    (checkout / "checkpoints" / "VideoReward" / "checkpoint-3" / "model.pth").unlink()
    with pytest.raises(UserError, match=r"has no checkpoint-\* with weights; name a checkout"):
        EvaluateOptions(videoalign=checkout)
    (checkout / "checkpoints" / "VideoReward" / "model_config.json").unlink()
    with pytest.raises(UserError, match="has no model_config.json"):
        EvaluateOptions(videoalign=checkout)
    with pytest.raises(UserError, match=r"has no inference.py; name a checkout"):
        EvaluateOptions(videoalign=tmp_path)
