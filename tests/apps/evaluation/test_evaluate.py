"""Evaluations from end to end: models of a few hundred kilobytes, and videos that are known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightx2v_sgmd.apps import evaluation
from lightx2v_sgmd.apps.evaluation import EvaluateOptions, evaluate, measuring
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.files.video import write_video
from lightx2v_sgmd.sampling.sampler import noise_for
from lightx2v_sgmd.system.errors import UserError
from tests.families.wan.test_image_to_video import write_prompts
from tests.families.wan.test_images import picture
from tests.measures.test_optical_flow import moving_texture
from tests.students import make_student
from tests.tiny import make_tiny_wan

PROMPTS = ["a red circle moving left", "a blue square", "a <b>circle</b> moving right"]
OPTIONS = EvaluateOptions(seeds=2, steps=2, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, its teacher, a prompt file, and the evaluation of the student beside it."""
    made = tmp_path_factory.mktemp("evaluation")
    make_student(made / "student")
    make_tiny_wan(made / "teacher", seed=1)
    (made / "prompts.txt").write_text("\n".join(PROMPTS))
    run(made)
    return made


def run(folder: Path, **options: Any) -> evaluation.Evaluation:
    return evaluate(
        folder / "student",
        folder / "prompts.txt",
        folder / "out",
        against=folder / "teacher",
        options=replace(OPTIONS, **options),
        quiet=True,
    )


def stored(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "metrics.json").read_text())
    return content


@pytest.mark.slow
def test_writes_what_the_contract_names(folder: Path) -> None:
    out, metrics = folder / "out", stored(folder)
    assert (metrics["prompts"], metrics["seeds"]) == (3, 2)
    assert metrics["sides"]["weights"]["kind"] == "student"
    assert metrics["sides"]["weights"]["nfe"] == 4
    teacher = metrics["sides"]["against"]
    # The guidance is that of the student's training; two steps with it are four evaluations.
    assert (teacher["kind"], teacher["guidance_scale"], teacher["nfe"]) == ("teacher", 3, 4)
    assert set(metrics["metrics"]) == set(evaluation.options.METRICS) - set(
        evaluation.options.OUTSIDE
    )
    assert metrics["frechet"]["videos"] == [6, 6] and metrics["frechet"]["features"] == 48
    for side in ("weights", "against"):
        assert len(list((out / "videos" / side).glob("*.mp4"))) == 6
        assert set(metrics["sides"][side]["measures"]) == set(metrics["differences"])
    # Both sides of a video start from one prompt and one seed.
    assert [video["seed"] for video in metrics["videos"]] == [0, 1, 2, 3, 4, 5]
    assert [video["prompt"] for video in metrics["videos"]] == PROMPTS * 2
    for video in metrics["videos"]:
        for side in ("weights", "against"):
            about = json.loads((out / video[side]["file"]).with_suffix(".json").read_text())
            assert (about["prompt"], about["seed"]) == (video["prompt"], video["seed"])


def test_the_report_needs_no_network_and_trusts_no_prompt(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    videos = [source for source in sources if source.startswith("data:video/mp4;base64,")]
    plots = [source for source in sources if source.startswith("data:image/svg+xml;base64")]
    assert len(videos) == 6 and len(plots) == 3 and len(sources) == 9
    assert "a &lt;b&gt;circle&lt;/b&gt; moving right" in page and "<b>circle" not in page
    assert "{{" not in page and "{%" not in page


def test_a_second_run_makes_and_measures_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored(folder)
    monkeypatch.setattr(evaluation.measuring, "measure_file", forbidden)
    monkeypatch.setattr(evaluation.measuring, "pairwise_distance", forbidden)
    monkeypatch.setattr("infer.batch.generate_files.Student", forbidden)
    monkeypatch.setattr("lightx2v_sgmd.sampling.sampler.VideoSampler", forbidden)
    monkeypatch.setattr("lightx2v_sgmd.apps.evaluation.scores.features.TeacherFeatures", forbidden)
    run(folder)
    assert stored(folder) == before


def test_only_what_is_missing_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stored(folder)
    lost = folder / "out" / before["videos"][4]["against"]["file"]
    lost.unlink()
    sampled: list[int] = []

    def noted(model: Model, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
        sampled.append(seed)
        return noise_for(model, seed, shape)

    monkeypatch.setattr("lightx2v_sgmd.sampling.sampler.noise_for", noted)
    run(folder)
    assert sampled == [4] and lost.is_file()
    after = stored(folder)
    assert [v["weights"] for v in after["videos"]] == [v["weights"] for v in before["videos"]]


@pytest.mark.slow
def test_other_options_make_the_teachers_videos_again(folder: Path) -> None:
    before = stored(folder)
    run(folder, guidance_scale=1.0)
    after = stored(folder)
    assert after["sides"]["against"]["nfe"] == 2
    assert [v["weights"] for v in after["videos"]] == [v["weights"] for v in before["videos"]]
    assert after["videos"][0]["against"] != before["videos"][0]["against"]
    run(folder)  # for the other tests


@pytest.mark.gpu
def test_a_gpu_makes_and_measures_the_videos(tmp_path: Path) -> None:
    """Student, teacher and its features run there; the same call makes nothing again."""
    student = make_student(tmp_path / "student")
    teacher = make_tiny_wan(tmp_path / "teacher", seed=1)
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    sides = (student, tmp_path / "p.txt", tmp_path / "out")
    options = replace(OPTIONS, device="cuda")
    found = evaluate(*sides, against=teacher, options=options, quiet=True).metrics
    assert found["frechet"]["videos"] == [6, 6] and found["frechet"]["distance"] >= 0
    for video in found["videos"]:
        file = tmp_path / "out" / video["against"]["file"]
        assert json.loads(file.with_suffix(".json").read_text())["dtype"] == "bfloat16"
        assert np.isfinite([video[side]["optflow"] for side in ("weights", "against")]).all()
    again = evaluate(*sides, against=teacher, options=options, quiet=True).metrics
    assert again["videos"] == found["videos"]


def forbidden(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("was there already")


def test_a_killed_measurement_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos(tmp_path / "a", [moving_texture(0.5, 0, seed=s) for s in range(4)])
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\nfour\n")
    measure, seen = measuring.measure_file, list[str]()

    def until_the_third(file: Path) -> dict[str, Any]:
        seen.append(file.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(file)

    monkeypatch.setattr(measuring, "measure_file", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "a", tmp_path / "p.txt", tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "metrics.json").exists()
    result = evaluate(tmp_path / "a", tmp_path / "p.txt", tmp_path / "out", quiet=True)
    assert seen == ["0.mp4", "1.mp4", "2.mp4", "2.mp4", "3.mp4"]
    assert "differences" not in result.metrics and result.metrics["ranking"]["by"] == "OptFlow"


def videos(folder: Path, frames: list[np.ndarray]) -> None:
    for index, video in enumerate(frames):
        write_video(video, folder / f"{index}.mp4", 8)


def test_known_differences_between_two_folders(tmp_path: Path) -> None:
    """The second folder is 20 grey levels brighter and stands still where the first moves."""
    first = [moving_texture(1.0, 0, seed=s) // 2 + 20 for s in range(4)]
    second = [moving_texture(0, 0, seed=s) // 2 + 40 for s in range(4)]
    videos(tmp_path / "a", first)
    videos(tmp_path / "b", second)
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\nfour\n")
    result = evaluate(
        tmp_path / "b",
        tmp_path / "p.txt",
        tmp_path / "out",
        against=tmp_path / "a",
        quiet=True,
    ).metrics
    brighter = result["differences"]["brightness"]
    assert brighter["mean"] == pytest.approx(20 / 255, abs=0.01) and brighter["clear"]
    flow = result["differences"]["optflow"]
    assert flow["mean"] == pytest.approx(-1, abs=0.15) and flow["high"] < -0.8
    assert flow["relative"] == pytest.approx(-1, abs=0.05)
    assert result["motion"]["slow"] == 1 and result["motion"]["fast"] == 0
    assert result["motion"]["distance"] == pytest.approx(1, abs=0.15)
    assert result["cautions"] == [] and "frechet" not in result


def test_what_cannot_be_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(weights: Path, options: EvaluateOptions = OPTIONS, **more: Any) -> str:
        prompts = more.pop("prompts", folder / "prompts.txt")
        with pytest.raises(UserError) as caught:
            evaluate(weights, prompts, more.pop("out", out), options=options, quiet=True, **more)
        assert not out.exists()
        return str(caught.value)

    student, teacher = folder / "student", folder / "teacher"
    assert "add --i3d" in refused(
        student, replace(OPTIONS, metrics=("fvd",)), against=folder / "teacher"
    )
    assert "--against" in refused(student, replace(OPTIONS, metrics=("motion",)))
    assert "--seeds 2" in refused(student, replace(OPTIONS, metrics=("diversity",), seeds=1))
    assert "--teacher" in refused(
        student, replace(OPTIONS, metrics=("frechet",)), against=folder / "student"
    )
    assert "--weights" in refused(tmp_path / "none")
    assert "--height" in refused(student, replace(OPTIONS, height=33))
    assert "needs two" in refused(student, replace(OPTIONS, num_frames=1, metrics=("brightness",)))
    assert "lies in" in refused(student, out=student / "out")
    assert "--num-frames" in refused(teacher)
    assert "more than the 1,000,000 videos" in refused(student, replace(OPTIONS, seeds=10**12))
    assert "--seed: " in refused(student, replace(OPTIONS, seed=2**63 - 3))
    (tmp_path / "empty").mkdir()
    assert "is empty" in refused(tmp_path / "empty")
    videos(tmp_path / "clips", [moving_texture(0, 0)])
    assert "1 .mp4 file," in refused(tmp_path / "clips")


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    videos(tmp_path / "a", [moving_texture(0.5, 0)])
    (tmp_path / "p.txt").write_text("one\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("mine")
    with pytest.raises(UserError, match="metrics.json"):
        evaluate(tmp_path / "a", tmp_path / "p.txt", tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / "metrics.json").read_text() == "mine"
    assert not (tmp_path / "out" / "measured").exists()


def test_a_damaged_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(b"no video")
    (tmp_path / "p.txt").write_text("one\n")
    with pytest.raises(UserError, match="x.mp4: cannot be read as a video"):
        evaluate(tmp_path / "a", tmp_path / "p.txt", tmp_path / "out", quiet=True)


@pytest.mark.slow
def test_videos_start_from_the_images_of_the_prompts(tmp_path: Path) -> None:
    """Another image makes the videos of its prompt again, and those of no other prompt."""
    student = make_student(tmp_path / "student", kind="image latents")
    teacher = make_tiny_wan(tmp_path / "teacher", seed=1, kind="image latents")
    prompts = write_prompts(tmp_path / "in", "a.png", "b.jpg")
    options = replace(OPTIONS, seeds=1)
    for _ in range(2):
        evaluate(student, prompts, tmp_path / "out", against=teacher, options=options, quiet=True)
        videos = sorted((tmp_path / "out" / "videos").glob("*/*.mp4"))
        assert len(videos) == 4
        before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in videos]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["frechet"]["videos"] == [2, 2]
    picture(40, 20).rotate(180).save(tmp_path / "in" / "a.png")
    evaluate(student, prompts, tmp_path / "out", against=teacher, options=options, quiet=True)
    after = [(file.read_bytes(), file.stat().st_mtime_ns) for file in videos]
    changed = [ours[0] != theirs[0] for ours, theirs in zip(after, before, strict=True)]
    assert changed == [True, False, True, False]  # of each side the first prompt's
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, True, False, True]


def test_a_prompt_without_the_image_that_a_model_needs_is_refused(tmp_path: Path) -> None:
    teacher = make_tiny_wan(tmp_path / "teacher", kind="image latents")
    prompts = write_prompts(tmp_path / "in", "a.png", None)
    with pytest.raises(UserError, match=r"prompts\.jsonl has prompts without an image, and --wei"):
        evaluate(teacher, prompts, tmp_path / "out", options=OPTIONS, quiet=True)
    row = json.loads(prompts.read_text().splitlines()[0])
    other = {**row, "image": "b.jpg"}
    prompts.write_text("".join(json.dumps(each) + "\n" for each in (row, other)))
    with pytest.raises(UserError, match="has the prompt a red circle .* with two images; give"):
        evaluate(teacher, prompts, tmp_path / "out", options=OPTIONS, quiet=True)
    prompts.write_text(json.dumps({**row, "image": "c.png"}) + "\n")
    with pytest.raises(UserError, match=r"c\.png"):
        evaluate(teacher, prompts, tmp_path / "out", options=OPTIONS, quiet=True)
    assert not (tmp_path / "out" / "videos").exists()
