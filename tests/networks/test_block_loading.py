"""Networks get their weights part by part, on the device that was asked for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lightx2v_sgmd.families.wan.opening import open_wan
from tests.tiny import make_tiny_wan


def test_a_block_is_handed_over_before_the_next_one_is_read(tmp_path: Path) -> None:
    model = open_wan(make_tiny_wan(tmp_path, layers=3))
    seen: list[str] = []
    networks: list[nn.Module] = []

    def look(name: str, part: nn.Module) -> None:
        if not name:
            networks.append(part)
        seen.append(name)
        empty = {
            ".".join(key.split(".")[:2])
            for key, p in networks[0].named_parameters()
            if p.device.type == "meta"
        }
        assert empty == {f"blocks.{i}" for i in range(3)} - set(seen)

    network = model.load_transformer(torch.bfloat16, on_part=look)
    assert seen == ["", "blocks.0", "blocks.1", "blocks.2"]
    expected = model.load_transformer(torch.bfloat16).state_dict()
    assert all(torch.equal(p, expected[name]) for name, p in network.state_dict().items())


def test_the_text_encoder_comes_layer_by_layer(tmp_path: Path) -> None:
    model = open_wan(make_tiny_wan(tmp_path))
    seen: list[str] = []
    model.load_text_encoder(torch.float32, on_part=lambda name, part: seen.append(name))
    assert seen == ["", "encoder.block.0"]


def test_weights_and_tables_go_to_the_device(tmp_path: Path) -> None:
    model = open_wan(make_tiny_wan(tmp_path))
    meta = torch.device("meta")
    for network in (
        model.load_transformer(torch.bfloat16, meta),
        model.load_vae(device=meta),
        model.load_text_encoder(torch.float32, meta).network,
    ):
        assert {x.device for x in (*network.parameters(), *network.buffers())} == {meta}
