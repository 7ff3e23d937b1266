"""Running the package: a stand-in in a Python of its own, called as VBench 0.1.5 is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.vbench.package import find_package, run_package
from lightx2v_sgmd.apps.vbench.results import find_results, read_results
from lightx2v_sgmd.system.errors import RunError, UserError

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
    names = ["color", "scene"]
    with pytest.raises(RunError, match="vbench failed on scene: .*no network named tag2text"):
        run_package(tmp_path / "info.json", videos, out, names, python, quiet=True)
    scores = read_results(find_results([out]))
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
