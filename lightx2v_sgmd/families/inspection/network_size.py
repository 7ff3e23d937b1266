"""The size of a network of Wan's, told from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lightx2v_sgmd.families.sources.hub_configs import known_hub_ids, known_transformer_config
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.building import build_transformer
from lightx2v_sgmd.untrusted.configs import check_transformer


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Layers, width and number of weights, and the published model of that size, in words."""
    config = config_from(shapes)
    count = sum(_product(shape) for shape in shapes.values())
    if config is None:
        return f"{count:,} weights"
    width = config["num_attention_heads"] * config["attention_head_dim"]
    plain = f"{config['num_layers']} layers of width {width}, {count:,} weights"
    for name in known_hub_ids("WanTransformer3DModel"):
        known = known_transformer_config(name) or {}
        same = all(
            known.get(key) == config[key] for key in ("num_layers", "ffn_dim", "in_channels")
        )
        if same:
            return f"{plain} ({name.split('/')[-1].removesuffix('-Diffusers')})"
    return plain


def config_from(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """A configuration that gives these shapes; None if too few of them are there.

    The number of heads cannot be told from shapes; that of Wan's models is taken, 128 wide each.
    """
    patch = shapes.get("patch_embedding.weight", ())
    feed = shapes.get("blocks.0.ffn.net.0.proj.weight", ())
    text = shapes.get("condition_embedder.text_embedder.linear_1.weight", ())
    time = shapes.get("condition_embedder.time_embedder.linear_1.weight", ())
    out = shapes.get("proj_out.weight", ())
    if (len(patch), len(feed), len(text), len(time), len(out)) != (5, 2, 2, 2, 2):
        return None
    blocks = [int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d{1,3})\.", name))]
    width, size = patch[0], _product(patch[2:])
    head = next((n for n in (128, 32, 12, 8, 4, 2) if width % n == 0), width)
    config: dict[str, Any] = {
        "patch_size": list(patch[2:]),
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "in_channels": patch[1],
        "out_channels": out[0] // size if size else patch[1],
        "text_dim": text[1],
        "freq_dim": time[1],
        "ffn_dim": feed[0],
        "num_layers": max(blocks) + 1,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
    }
    try:
        check_transformer(config)
    except UserError:  # sizes that no network of Wan has
        return None
    return config


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's weights, from its configuration; takes no memory."""
    from lightx2v_sgmd.families import loading

    return loading.shapes_of(lambda: build_transformer(dict(config)))


def _product(shape: Iterable[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
