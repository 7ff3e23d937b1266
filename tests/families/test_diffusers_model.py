"""A model in diffusers' layout, where its family says nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.weighted_lora import WeightedLora
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import make_tiny_cogvideox
from tests.tiny_sd3 import make_tiny_sd3


def test_it_takes_no_images_and_no_lora_of_another_model(tmp_path: Path) -> None:
    model = open_model(make_tiny_cogvideox(tmp_path / "cogvideox"))
    assert model.with_loras([]) is model
    lora = tmp_path / "style.safetensors"
    pair = {f"transformer.blocks.0.attn1.to_q.lora_{kind}.weight": torch.ones(1) for kind in "AB"}
    save_file(pair, lora)
    with pytest.raises(UserError, match="matches no layer of this model"):
        model.with_loras([WeightedLora(lora)])
    with pytest.raises(UserError, match="makes videos from text alone"):
        model.load_image_encoder()
    images = open_model(make_tiny_sd3(tmp_path / "sd3"))
    with pytest.raises(UserError, match="makes images from text alone; leave out the image$"):
        images.load_image_encoder()
