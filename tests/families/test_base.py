"""The seam: what code outside the families may hold, and what it must not ask."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.loading import stays_float32
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.model import WanModel

ROOT = Path(__file__).resolve().parents[2]
# They know the layers of Wan's networks: kernels, key maps and the engine's way to load a file.
KNOW_WAN = (
    "infer/checks.py",
    "infer/vae/decoding.py",
    "infer/network/",
    "weights/",
    "lightx2v_sgmd/networks/",
    "lightx2v_sgmd/families/",
)
ASKED = re.compile(r"lightx2v_sgmd\.families\.wan\b|\bWanModel\b|\bopen_wan\b")


def test_nothing_else_asks_for_wan() -> None:
    found = []
    for package in ("lightx2v_sgmd", "distill", "infer", "weights"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(KNOW_WAN) and ASKED.search(path.read_text(encoding="utf-8")):
                found.append(name)
    assert found == []


def test_a_wan_model_is_a_model(tiny_teacher: Path) -> None:
    model: Model = open_model(tiny_teacher)
    assert isinstance(model, WanModel)
    assert model.num_blocks == model.transformer_config["num_layers"]
    assert model.width == model.num_heads * model.head_dim
    with torch.device("meta"):
        network = model.with_blocks(5).build_transformer()
    assert len(network.blocks) == 5 and model.num_blocks != 5
    kept = stays_float32(network)
    assert kept("blocks.0.norm2.weight") and not kept("blocks.0.ffn.net.2.weight")


@torch.no_grad()
def test_its_prediction_is_the_networks_velocity(tiny_teacher: Path) -> None:
    model = open_model(tiny_teacher)
    network, rows = model.load_transformer(), [torch.ones(3, 16), torch.ones(1, 16)]
    x_t, time = torch.ones(2, 4, 2, 4, 4), torch.tensor([0.25, 1.0])
    told = model.conditioning([Embedding({"text": row}) for row in rows])
    assert torch.equal(told["text"], pad_text(rows))
    expected = velocity(network, x_t, time, pad_text(rows))
    assert torch.equal(model.predict(network, x_t, time, told), expected)
