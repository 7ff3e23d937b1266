"""Images that videos start from: what is read, what is refused, and how they are cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from lightx2v_sgmd.files import images
from lightx2v_sgmd.files.images import check_image, fitted, read_image
from lightx2v_sgmd.system.errors import UserError


def write(path: Path, size: tuple[int, int] = (40, 20), mode: str = "RGB") -> Path:
    Image.new(mode, size, 128).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "without_a_suffix"])
def test_the_content_tells_the_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.new("L", (40, 20), 128).save(path, format=None if "." in name else "PNG")
    image = read_image(path)
    assert image.mode == "RGB" and image.size == (40, 20)
    assert len(check_image(path)) == 64


def test_a_camera_that_was_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation: turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (20, 40)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_check_finds_damage_behind_a_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = bytes((index * index * 31) % 251 for index in range(120 * 80 * 3))
    Image.frombytes("RGB", (120, 80), noise).save(path)
    assert len(check_image(path)) == 64
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"a\.{suffix}: cannot be decoded .*damaged"):
        check_image(path)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "a.png", (200, 200)).read_bytes()
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (40, 40)).save(tmp_path / "a.gif")
    (tmp_path / "text.png").write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    for name, says in (
        ("none.png", "no such file"),
        ("cut.png", "cannot be decoded .*damaged"),
        ("a.gif", "not a PNG, JPEG or WebP"),
        ("text.png", "not a PNG, JPEG or WebP"),
        (".", "is a folder"),
        ("pipe.png", "pipe"),
    ):
        with pytest.raises(UserError, match=says):
            read_image(tmp_path / name)
    monkeypatch.setattr(images, "MOST_PIXELS", 100 * 100)
    with pytest.raises(UserError, match="200 x 200 pixels, more than the 10,000"):
        check_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="at least 16 x 16"):
        check_image(write(tmp_path / "small.png", (40, 8)))


def test_the_middle_of_another_shape() -> None:
    image = Image.new("RGB", (100, 40))
    image.paste((255, 0, 0), (30, 0, 70, 40))
    cut = fitted(image, 32, 32)
    assert cut.size == (40, 40) and cut.getcolors() == [(1600, (255, 0, 0))]
    assert fitted(image, 32, 80).size == (100, 40)
    assert fitted(image, 80, 32).size == (16, 40)
