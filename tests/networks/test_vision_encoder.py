"""Vision encoders of the pixel discriminator: SAM and DINOv2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightx2v_sgmd.networks.vision_encoder import VisionBackbone, captured_layers, vision_widths
from lightx2v_sgmd.system.errors import UserError
from tests.pairs import make_encoder


@pytest.fixture(scope="module", params=["sam", "dinov2"])
def encoder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(request.param, tmp_path_factory.mktemp(request.param))


def test_a_vision_encoders_features_carry_gradient_to_the_frames(encoder: Path) -> None:
    backbone = VisionBackbone(str(encoder), torch.device("cpu"))
    frames = torch.rand(2, 3, 32, 32, requires_grad=True)
    maps = backbone.features(frames)
    assert [m.shape[:2] for m in maps] == [(2, w) for w in vision_widths(str(encoder))]
    assert len({m.shape[2] for m in maps}) == 1 and len(maps) == 4
    (gradient,) = torch.autograd.grad(maps[-1].square().sum(), frames)
    assert gradient.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in backbone.network.parameters())


def test_sam_sees_the_picture_in_its_own_shape(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = VisionBackbone(str(encoder), torch.device("cpu"))
    seen: list[torch.Tensor] = []
    forward = backbone.network.forward

    def noted(pixels: torch.Tensor, **options: Any) -> Any:
        seen.append(pixels)
        return forward(pixels, **options)

    monkeypatch.setattr(backbone.network, "forward", noted)
    wide, square = (
        backbone.features(torch.ones(1, 3, 16, 32)),
        backbone.features(torch.ones(1, 3, 9, 9)),
    )
    (pixels, _), side = seen, backbone.size
    assert pixels.shape == (1, 3, side, side)
    filled = (pixels != 0).all(dim=1)[0]
    if side == 64:  # SAM: a picture twice as wide as high fills the upper half
        assert filled[:32].all() and not filled[32:].any()
        assert [m.shape[2:] for m in wide] == [(2, 4)] * len(wide)
    else:
        assert filled.all() and wide[0].shape == square[0].shape
    assert square[0].shape[2] == square[0].shape[3] == 4


def test_heads_are_on_the_papers_layers() -> None:
    assert captured_layers(12) == [3, 6, 9, 12]
    assert captured_layers(2) == [1, 2]


def test_a_folder_that_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method.vision_encoder: .* is not a folder with"):
        vision_widths(str(tmp_path))
