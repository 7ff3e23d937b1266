"""Running the package: a stand-in in a Python of its own, called as VBench 0.1.5 is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from lightx2v_sgmd.apps.evaluation.options import EvaluateOptions
from lightx2v_sgmd.apps.vbench import VBenchOptions, evaluate_vbench
from lightx2v_sgmd.apps.vbench.package import find_package, run_package
from lightx2v_sgmd.apps.vbench.results import find_results, read_results
from lightx2v_sgmd.files.video import read_frames, write_video
from lightx2v_sgmd.system.errors import RunError, UserError
from tests.apps.vbench import test_suite

REAL: Final = "LIGHTX2V_SGMD_TEST_VBENCH"
"""The variable that names a Python with the real package."""
# The calls and the files are those of vbench/__init__.py of version 0.1.5.
STANDIN = """
import json, os
class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.info, self.out = device, full_info_dir, output_path
    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False,
                 read_frame=False, mode="vbench_standard", **kwargs):
        (dimension,) = dimension_list
        print("measuring", dimension, self.device)
        if dimension == "scene":
            raise RuntimeError("no network named tag2text")
        videos = [{"video_path": v, "video_results": 0.5} for v in sorted(os.listdir(videos_path))]
        results = {dimension: [0.5, videos]}
        with open(os.path.join(self.out, name + "_eval_results.json"), "w") as file:
            json.dump(results, file)
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python with a stand-in for vbench and for PyTorch, which takes a second to import."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "vbench.py").write_text(STANDIN)
    (packages / "torch.py").write_text(
        "class cuda:\n    is_available = staticmethod(lambda: False)\ndevice = str\n"
    )
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


def test_a_python_that_has_it_is_found(python: Path, tmp_path: Path) -> None:
    found = find_package(python)
    assert found is not None and set(found) == {"vbench", "torch"}
    assert find_package(None) is None  # it is not installed beside this program
    with pytest.raises(UserError, match="has no package vbench; install it there"):
        find_package(Path(sys.executable))
    with pytest.raises(UserError, match="cannot be run"):
        find_package(tmp_path / "none")


def test_each_dimension_is_measured_once(python: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "results"
    videos.mkdir()
    for index in range(3):
        (videos / f"a dog-{index}.mp4").write_text("")
    names = ["scene", "color"]
    (failed,) = run_package(tmp_path / "info.json", videos, out, names, python, quiet=True)
    assert failed.startswith("scene: ") and "no network named tag2text (all of it is in" in failed
    scores = read_results(find_results([out]))  # of the one after the one that failed
    assert {name: (s.value, s.videos) for name, s in scores.items()} == {"color": (0.5, 3)}
    assert "measuring color cpu" in (out / "color.log").read_text()
    # What is there is not measured again: without a Python that could.
    run_package(tmp_path / "info.json", videos, out, ["color"], tmp_path / "none", quiet=True)
    (videos / "a dog-1.mp4").write_text("another")
    with pytest.raises(UserError, match="has results of other videos"):
        run_package(tmp_path / "info.json", videos, out, ["color"], python, quiet=True)


def test_a_python_in_the_current_folder_is_no_name_in_path(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(python.parent)
    assert find_package(Path("./python")) is not None


def write_videos(folder: Path, prompt: str, numbers: range) -> Path:
    """Videos under VBench's names, of noise that changes from frame to frame."""
    folder.mkdir(exist_ok=True)
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    for number in numbers:
        write_video(frames, folder / f"{prompt}-{number}.mp4", 8)
    return folder


def test_a_report_has_what_did_not_fail(python: Path, tmp_path: Path) -> None:
    entries = [
        {"prompt_en": "a red circle", "dimension": ["scene", "color"]},
        {"prompt_en": "a dog", "dimension": ["object_class"]},
    ]
    videos = write_videos(tmp_path / "videos", "a red circle", range(3))
    asked = VBenchOptions(test_suite.write(tmp_path, entries), python=python)
    options, out = EvaluateOptions(device="cpu"), tmp_path / "out"
    with pytest.raises(RunError, match="vbench failed on scene: .*report.html has the others"):
        evaluate_vbench(videos, out, asked, options, quiet=True)
    found = json.loads((out / "metrics.json").read_text())["vbench"]["dimensions"]
    # No video of object_class is there, so vbench is not asked for it.
    assert {name: about["score"] for name, about in found.items()} == {
        "object_class": None,
        "color": 0.5,
        "scene": None,
    }
    assert (out / "report.html").is_file()
    assert not list(out.rglob("object_class*"))


@pytest.mark.slow
@pytest.mark.skipif(REAL not in os.environ, reason=f"{REAL} names no Python that has vbench")
def test_the_real_package(tmp_path: Path) -> None:
    """Temporal flickering, the one dimension that needs no network, by its rule."""
    entries = [{"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]}]
    videos = write_videos(tmp_path / "videos", "In a still frame, a stop sign", range(4))
    asked = VBenchOptions(test_suite.write(tmp_path, entries), python=Path(os.environ[REAL]))
    options = EvaluateOptions(device="cpu")
    found = evaluate_vbench(videos, tmp_path / "out", asked, options, quiet=True)
    assert found is not None and found["vbench"]["setup"]["vbench"]
    about = found["vbench"]["dimensions"]["temporal_flickering"]
    assert (about["wanted"], about["measured"], about["missing"]) == (5, 4, 1)
    frames = read_frames(next(videos.iterdir())).astype(float)
    change = np.abs(np.diff(frames, axis=0)).mean()
    assert about["score"] == pytest.approx(1 - change / 255, abs=0.003)  # their decoder rounds
