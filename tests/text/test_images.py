"""Images are encoded once for each content and size, and cached by both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.images import read_image
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text import images
from lightx2v_sgmd.text.images import EmbeddingsWithImages, encode_images
from tests.tiny import make_tiny_wan

SMALL, WIDE = (32, 32, 5), (32, 48, 5)


def test_each_content_and_size_is_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_wan(make_tiny_wan(tmp_path / "model", kind="text and image"))
    for name, colour in (("a.png", 0), ("same.png", 0), ("b.png", 200)):
        Image.new("RGB", (64, 64), (colour, 100, 0)).save(tmp_path / name)
    wanted = [
        (tmp_path / "a.png", SMALL),
        None,
        (tmp_path / "same.png", SMALL),
        (tmp_path / "b.png", SMALL),
        (tmp_path / "a.png", WIDE),
    ]
    cached = encode_images(model, wanted, Ranks(), tmp_path / "cache")
    assert len(list(tmp_path.glob("cache/images_*/*.safetensors"))) == 3
    kept = encode_images(model, wanted, Ranks(), None)
    for ours, theirs in zip(cached, kept, strict=True):
        assert ours.read().keys() == theirs.read().keys()
        assert all(torch.equal(ours.read()[name], theirs.read()[name]) for name in ours.read())
    assert cached[1].read() == {}
    assert not torch.equal(cached[0].read()["first_frame"], cached[3].read()["first_frame"])
    rows = [Embedding({"text": torch.zeros(2, 16)})] * 5
    both = EmbeddingsWithImages(rows, cached)
    assert [sorted(row) for row in both[:2]] == [["first_frame", "text"], ["text"]]
    # A damaged file counts as absent; nothing else is encoded again.
    next(iter(tmp_path.glob("cache/images_*/*.safetensors"))).write_bytes(b"damaged")
    read: list[str] = []
    original = read_image

    def counting(path: Path) -> object:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(images, "read_image", counting)
    encode_images(model, wanted, Ranks(), tmp_path / "cache")
    assert len(read) == 1


def test_many_images_need_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_wan(make_tiny_wan(tmp_path / "model", kind="text and image"))
    monkeypatch.setattr(images, "MOST_IN_MEMORY", 1)
    for colour in (0, 200):
        Image.new("RGB", (64, 64), (colour, 0, 0)).save(tmp_path / f"{colour}.png")
    wanted = [(tmp_path / f"{colour}.png", SMALL) for colour in (0, 200)]
    with pytest.raises(UserError, match="^--text-cache: is not set, and .* have 2 images"):
        encode_images(model, wanted, Ranks(), None, setting="--text-cache")
