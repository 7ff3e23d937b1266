"""A sidecar proves that a video is ours, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infer.batch.sidecars import is_there, link, problem, publish, sidecar
from lightx2v_sgmd.system.errors import UserError

PROVENANCE = {"prompt": "a red circle", "seed": 3}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    video = tmp_path / "a.mp4"
    made = tmp_path / "temporary"
    made.write_bytes(b"frames")
    publish(made, video, PROVENANCE)
    assert not made.exists()
    return video


def test_a_published_video_is_there(video: Path) -> None:
    saved = json.loads(sidecar(video).read_text())
    assert saved["prompt"] == "a red circle" and saved["bytes"] == 6
    assert is_there(video, PROVENANCE) and problem(video) is None
    assert not is_there(video, {**PROVENANCE, "seed": 4})


def test_one_changed_byte_of_either_makes_it_another_ones(video: Path) -> None:
    video.write_bytes(b"Frames")
    assert not is_there(video, PROVENANCE)
    assert "was not made by generate, or has changed since" in str(problem(video))
    video.write_bytes(b"frames")
    assert problem(video) is None
    text = sidecar(video).read_text()
    sidecar(video).write_text(text.replace('"seed": 3', '"seed": 4'))
    assert "was not written for a video, or has changed" in str(problem(video))


def test_only_our_own_video_is_replaced(video: Path, tmp_path: Path) -> None:
    other = tmp_path / "temporary"
    other.write_bytes(b"other frames")
    publish(other, video, {"prompt": "b"})
    assert video.read_bytes() == b"other frames" and is_there(video, {"prompt": "b"})
    video.write_bytes(b"edited")
    other.write_bytes(b"third")
    with pytest.raises(UserError, match="it is not replaced, choose another name"):
        publish(other, video, PROVENANCE)
    assert video.read_bytes() == b"edited"


def test_our_own_video_appears_in_a_second_place_that_is_free(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert link(video, tmp_path / "b.mp4") and is_there(tmp_path / "b.mp4", PROVENANCE)
    assert (tmp_path / "b.mp4").stat().st_ino == video.stat().st_ino

    def none(*arguments: object) -> None:
        raise OSError("no hard links here")

    with monkeypatch.context() as patched:
        patched.setattr("infer.batch.sidecars.os.link", none)
        assert link(video, tmp_path / "c.mp4") and is_there(tmp_path / "c.mp4", PROVENANCE)
    assert not link(video, tmp_path / "b.mp4")
    (tmp_path / "d.json").write_text("mine")
    assert not link(video, tmp_path / "d.mp4") and not (tmp_path / "d.mp4").exists()
    video.write_bytes(b"edited")
    assert not link(video, tmp_path / "e.mp4")
    assert {path.name[0] for path in tmp_path.iterdir()} == {"a", "b", "c", "d"}


def test_a_sidecar_that_a_kill_left_without_its_video_is_replaced(
    video: Path, tmp_path: Path
) -> None:
    target = tmp_path / "b.mp4"
    made = tmp_path / "temporary"
    made.write_bytes(b"others")
    publish(made, target, {"prompt": "b"})
    target.unlink()
    assert link(video, target) and is_there(target, PROVENANCE)
    sidecar(target).write_text("mine")
    target.unlink()
    assert not link(video, target) and sidecar(target).read_text() == "mine"


def test_a_copy_is_on_the_disk_before_it_has_its_name(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no hard links; nothing is left of a copy that the disk has no room for."""

    def none(*arguments: object) -> None:
        raise OSError("no hard links here")

    synced: list[bytes] = []

    def sync(path: Path) -> None:
        assert not (tmp_path / "b.mp4").exists()
        synced.append(path.read_bytes())

    monkeypatch.setattr("infer.batch.sidecars.os.link", none)
    monkeypatch.setattr("infer.batch.sidecars.sync_file", sync)
    assert link(video, tmp_path / "b.mp4") and is_there(tmp_path / "b.mp4", PROVENANCE)
    assert synced == [sidecar(video).read_bytes(), b"frames"]

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("infer.batch.sidecars.shutil.copy2", full)
    with pytest.raises(OSError, match="no space left"):
        link(video, tmp_path / "c.mp4")
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a.json", "b.mp4", "b.json"}


def test_a_link_is_not_ours(video: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.mp4"
    video.rename(moved)
    video.symlink_to(moved)
    assert problem(video) is not None and not is_there(video, PROVENANCE)
