from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import infer.batch.requests
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.system.errors import UserError
from tests.students import generate, load_student


def test_one_prompt_gives_one_file(shared_student: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips" / "red.mp4"
    assert generate(shared_student, "a red circle", out, seed=3, quiet=True) == [out]
    frames, fps = read_video(out)
    assert frames.shape == (9, 32, 32, 3) and fps == 8
    # H.264 is lossy; the video is still nearest to the one of its seed.
    made = load_student(shared_student).generate(["a red circle"] * 6, range(6)).videos
    distances = [float(abs(frames.astype(float) - video).mean()) for video in made]
    assert distances.index(min(distances)) == 3


def test_several_prompts_fill_a_folder(shared_student: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A red circle, moving left!\na/../b: 'c'\n日本\n", encoding="utf-8")
    files = generate(shared_student, prompts, tmp_path / "out", num_frames=5, fps=4, quiet=True)
    names = ["0000_a_red_circle_moving_left.mp4", "0001_a_b_c.mp4", "0002_日本.mp4"]
    assert [f.name for f in files] == names
    there = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert there == sorted([*names, *(name.replace(".mp4", ".json") for name in names)])
    assert read_video(files[0])[0].shape[0] == 5 and read_video(files[0])[1] == 4


def test_progress_lines_go_to_stderr(
    shared_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(shared_student, "a red circle", tmp_path / "a.mp4")
    said = capsys.readouterr()
    assert said.out == "" and "generating 5/5" in said.err and "0000_a_red_circle" in said.err
    load_student(shared_student).generate("a red circle", quiet=False)
    said = capsys.readouterr()
    assert said.out == "" and "denoising 4/4" in said.err and "decoding 1/1" in said.err
    assert "Loading" not in said.err  # the bars of the libraries below


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prompts": ["a", "b"], "out": "x.mp4"}, "is one file for 2 prompts"),
        ({"out": "x.avi"}, "videos are written as .mp4"),
        ({"prompts": "  "}, "prompt: is empty"),
        ({"prompts": []}, "prompt: is empty"),
        ({"num_frames": 8}, "num_frames: 8 is not 4k"),
        ({"seed": -1}, "seed: -1 is out of range"),
        ({"attention": "flash3", "device": "cpu"}, "flash3 cannot run here"),
        ({"device": "gpu"}, "device: 'gpu' is not a device"),
        ({"quantize": "int4"}, "quantize: 'int4' is unknown; use none, fp8"),
        ({"offload": True, "device": "cpu"}, "offload: needs a CUDA device"),
        ({"max_memory_gib": 1e-6}, "max_memory_gib: 1e-06 is too little for 32x32, 9 frames"),
        ({"profile": Path("taken/trace.json")}, "taken is not a folder"),
        ({"out": "taken/x.mp4"}, "taken is not a folder"),
    ],
)
def test_mistakes_are_found_before_weights_are_loaded(
    shared_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    match: str,
) -> None:
    (tmp_path / "taken").write_text("")

    def loaded(*args: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("infer.parts.StudentParts._load_network", loaded)
    options: dict[str, Any] = {"prompts": "a", "quiet": True, **change}
    out = tmp_path / str(options.pop("out", "x.mp4"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=match):
        generate(shared_student, options.pop("prompts"), out, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_prompt_file_is_one_clear_line(shared_student: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt"):
        generate(shared_student, tmp_path / "none.txt", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_slugs_stay_short() -> None:
    assert len(infer.batch.requests.slug("long " * 100)) <= 48
    assert infer.batch.requests.slug("!!!") == "video"


def test_a_profile_is_a_trace(shared_student: Path, tmp_path: Path) -> None:
    generate(shared_student, "a", tmp_path / "a.mp4", profile=tmp_path / "t.json", quiet=True)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert any("scaled_dot_product" in str(event.get("name")) for event in events)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a.json", "t.json"}
    with pytest.raises(UserError, match="t.json is there already; name a new file"):
        generate(shared_student, "a", tmp_path / "b.mp4", profile=tmp_path / "t.json", quiet=True)
    with pytest.raises(UserError, match="is where a video or its sidecar goes"):
        generate(shared_student, "a", tmp_path / "b.mp4", profile=tmp_path / "b.json", quiet=True)
