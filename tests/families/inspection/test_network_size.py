"""The size of a network, told from the shapes of its weights."""

from __future__ import annotations

from pathlib import Path

from lightx2v_sgmd.families.inspection.network_size import (
    config_from,
    shapes_of,
    size_of,
)
from lightx2v_sgmd.families.wan.opening import open_wan
from tests.tiny import make_tiny_wan


def test_the_configuration_follows_from_the_shapes(tmp_path: Path) -> None:
    model = open_wan(make_tiny_wan(tmp_path / "base"))
    found = config_from(model.transformer_shapes())
    assert found is not None
    for key in ("patch_size", "in_channels", "text_dim", "freq_dim", "ffn_dim", "num_layers"):
        expected = model.transformer_config[key]
        assert found[key] == (list(expected) if key == "patch_size" else expected)
    assert config_from({"a": (1,)}) is None
    assert shapes_of(model.transformer_config) == dict(model.transformer_shapes())
    assert size_of(model.transformer_shapes()).startswith("2 layers of width 48, ")


def test_a_published_size_is_named() -> None:
    shapes = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers").transformer_shapes()
    assert size_of(shapes).endswith("(Wan2.1-T2V-1.3B)")
