"""How a teacher is sampled where nobody says it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightx2v_sgmd.apps.evaluation.making import (
    GUIDANCE,
    check_guidance,
    guidance_facts,
    guidance_of,
    teacher_videos,
    with_second_scale,
)
from lightx2v_sgmd.apps.evaluation.options import EvaluateOptions
from lightx2v_sgmd.apps.evaluation.sources import VideoSource, open_source
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.outputs import locked_folder
from lightx2v_sgmd.sampling.sampler import VideoSampler
from lightx2v_sgmd.system.errors import UserError
from tests.students import make_student
from tests.tiny import make_tiny_experts, make_tiny_wan


def test_guidance_is_the_users_else_the_trainings_else_the_pipelines(tmp_path: Path) -> None:
    student = open_source(make_student(tmp_path / "s"), "--weights")  # trained with guidance 3
    teacher = VideoSource("teacher", "teacher")
    given = EvaluateOptions(guidance_scale=1.5)
    assert guidance_of(given, [teacher, student]) == 1.5
    assert guidance_of(EvaluateOptions(), [teacher, student]) == 3
    assert guidance_of(EvaluateOptions(), [teacher, None]) == GUIDANCE == 5


def test_the_second_scale_is_the_users_else_the_trainings_else_the_first(tmp_path: Path) -> None:
    student = open_source(make_student(tmp_path / "s"), "--weights")
    assert student.manifest is not None
    trained = replace(student, manifest=replace(student.manifest, guidance_scale_2=2.0))
    sources = [VideoSource("teacher", "teacher"), trained]
    assert with_second_scale(EvaluateOptions(), sources).guidance_scale_2 == 2
    assert with_second_scale(EvaluateOptions(), [student]).guidance_scale_2 is None
    assert with_second_scale(EvaluateOptions(guidance_scale=4), sources).guidance_scale_2 is None
    given = EvaluateOptions(guidance_scale_2=1.5)
    assert with_second_scale(given, sources) is given


def test_a_pairs_second_expert_has_a_scale_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = open_source(make_tiny_experts(tmp_path / "pair"), "--weights")
    options = EvaluateOptions(steps=2, guidance_scale=4.0, guidance_scale_2=1.5, device="cpu")
    check_guidance(options, [pair])
    assert pair.model is not None
    with pytest.raises(UserError, match="--guidance-scale-2: is for the second expert"):
        check_guidance(options, [replace(pair, model=pair.model.experts[0].model)])
    facts = guidance_facts(options, pair, [pair])
    assert facts == {"guidance_scale": 4, "guidance_scale_2": 1.5, "nfe": 4}
    same = replace(options, guidance_scale=1, guidance_scale_2=1)
    assert guidance_facts(same, pair, [pair])["nfe"] == 2
    # A teacher of one network beside the pair is guided by the first scale alone.
    one = replace(pair, model=pair.model.experts[0].model)
    unguided = replace(options, guidance_scale=1)
    assert guidance_facts(unguided, one, [pair, one]) == {"guidance_scale": 1, "nfe": 2}
    assert guidance_facts(unguided, pair, [pair, one])["nfe"] == 4
    scales: list[tuple[float, ...]] = []

    def sampled(sampler: VideoSampler, prompts: Sequence[str], seeds: Sequence[int]) -> Any:
        scales.append(sampler._scales)
        return np.zeros((len(prompts), 5, 32, 32, 3), np.uint8)

    monkeypatch.setattr(VideoSampler, "__call__", sampled)
    size, out = VideoFacts(32, 32, 5, 8.0), tmp_path / "out"
    with locked_folder(out, "evaluate", quiet=True) as lock:
        (file,) = teacher_videos(pair, ["a"], size, 4.0, options, out, lock, True)
    assert scales == [(4.0, 1.5)]
    assert json.loads(file.with_suffix(".json").read_text())["guidance_scale_2"] == 1.5


def test_a_teachers_videos_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(make_tiny_wan(tmp_path / "t"), "--weights")
    assert source.kind == "teacher"
    options = EvaluateOptions(steps=2, seed=7, negative_prompt="slowly", device="cpu")
    size = VideoFacts(32, 32, 5, 8.0)
    out = tmp_path / "out"

    def make(guidance_scale: float) -> list[Path]:
        with locked_folder(out, "evaluate", quiet=True) as lock:
            return teacher_videos(
                source, ["a", "red"], size, guidance_scale, options, out / "v", lock, True
            )

    files = make(2.0)
    assert [file.name for file in files] == ["0000_a.mp4", "0001_red.mp4"]
    frames, fps = read_video(files[1])
    assert frames.shape == (5, 32, 32, 3) and fps == 8
    about = json.loads(files[1].with_suffix(".json").read_text())
    assert (about["prompt"], about["seed"], about["guidance_scale"]) == ("red", 8, 2)
    assert about["negative_prompt"] == "slowly" and about["solver"]

    def forbidden(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("was there already")

    monkeypatch.setattr("lightx2v_sgmd.sampling.sampler.VideoSampler", forbidden)
    assert make(2.0) == files
    with pytest.raises(AssertionError, match="was there"):
        make(3.0)
