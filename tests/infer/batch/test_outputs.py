"""Where videos may go, found before weights are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer.batch.outputs import check_own, check_profile, output_files, refuse_sources
from infer.batch.requests import make_requests
from infer.options import Lora, Options
from lightx2v_sgmd.system.errors import UserError


def test_one_prompt_goes_to_a_file_and_several_to_a_folder(tmp_path: Path) -> None:
    one, two = make_requests("a", 0), make_requests(["a", "b"], 0)
    assert output_files(one, tmp_path / "v", alone=True) == [tmp_path / "v.mp4"]
    assert output_files(one, tmp_path / "v", True, ".png") == [tmp_path / "v.png"]
    assert output_files(one, tmp_path / "v.MP4", alone=True) == [tmp_path / "v.mp4"]
    files = output_files(two, tmp_path / "out", alone=False)
    assert files == [tmp_path / "out" / "0000_a.mp4", tmp_path / "out" / "0001_b.mp4"]
    # A folder that is there takes a single video, too.
    assert output_files(one, tmp_path, alone=True) == [tmp_path / "0000_a.mp4"]


def test_an_output_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    one, two = make_requests("a", 0), make_requests(["a", "b"], 0)
    with pytest.raises(UserError, match=r"this model's images are written as \.png; end --out"):
        output_files(one, tmp_path / "v.mp4", True, ".png")
    with pytest.raises(UserError, match=r"videos are written as \.mp4; end --out with \.mp4"):
        output_files(one, tmp_path / "v.gif", alone=True)
    with pytest.raises(UserError, match="is one file for 2 prompts; give a folder"):
        output_files(two, tmp_path / "v.mp4", alone=False)
    (tmp_path / "0001_b.mp4").mkdir()
    with pytest.raises(UserError, match=r"0001_b\.mp4: is a folder, not a file"):
        output_files(two, tmp_path, alone=False)


def test_what_is_not_ours_is_counted(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.mp4" for name in "abc"]
    for file in files[:2]:
        file.write_bytes(b"a holiday")
    with pytest.raises(UserError, match=r"a\.mp4 was not made .* \(and 1 more like it\); it"):
        check_own(files)
    check_own(files[2:])


def test_a_profile_replaces_nothing(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    check_profile(tmp_path / "trace.json", [video])
    with pytest.raises(UserError, match="is where a video or its sidecar goes; name another"):
        check_profile(tmp_path / "a.json", [video])
    (tmp_path / "trace.json").write_text("{}")
    with pytest.raises(UserError, match="is there already; name a new file"):
        check_profile(tmp_path / "trace.json", [video])


def test_what_is_read_is_not_written(shared_student: Path, tmp_path: Path) -> None:
    options = Options()
    inside = [shared_student / "a.mp4"]
    with pytest.raises(UserError, match="--weights"):
        refuse_sources(inside, shared_student, options, "a", inside[0])
    video, lora = tmp_path / "a.mp4", tmp_path / "lora.mp4"
    for file in (video, lora):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="--lora 1"):
        refuse_sources([lora], shared_student, Options(loras=(Lora(lora),)), "a", lora)
    with pytest.raises(UserError, match="--prompts"):
        refuse_sources([video], shared_student, options, video, video)
    refuse_sources([video], shared_student, options, "a", video)
