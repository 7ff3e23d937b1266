"""Writes a folder of a published Wan's sizes with random weights, tensor by tensor to the disk.

Nothing is downloaded, and no more than one tensor is in memory. The network and the text encoder
are bfloat16 and the VAE float32, as they are published: 14 GB for Wan2.1-T2V-1.3B.
"""

from __future__ import annotations

import json
import zlib
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.t5 import EMBEDDING_ALIASES
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.tensors.safetensors_writer import Part, ShardWriter, split
from lightx2v_sgmd.schedule import Schedule
from tools.models.wan_folder import make_tokenizer

SPREAD: Final = 0.02
"""Standard deviation of the random matrices."""
WORDS: Final = ("a", "red", "blue", "circle", "square", "moving", "left", "right", "quickly")


def write_published_size(folder: Path, model: WanModel | None = None) -> int:
    """Writes the model's folder in diffusers' layout; returns the bytes of its weights.

    Args:
        folder: A folder that is not there yet.
        model: The model whose sizes it has; default Wan2.1-T2V-1.3B.
    """
    model = model or open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    folder.mkdir(parents=True)
    with torch.device("meta"):
        networks = {
            "transformer": (model.build_transformer(), torch.bfloat16, model.transformer_config),
            "text_encoder": (
                model.build_text_encoder(),
                torch.bfloat16,
                dict(model.expected_text_encoder_config()),
            ),
            "vae": (model.build_vae(), torch.float32, model.vae_config),
        }
    size = 0
    for name, (network, dtype, config) in networks.items():
        place = folder / name
        place.mkdir()
        size += _write_weights(place, network, dtype, name == "text_encoder")
        about = dict(config)
        if name != "text_encoder":
            about = {"_class_name": type(network).__name__, **about}
        (place / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    make_tokenizer(list(WORDS)).save_pretrained(folder / "tokenizer")
    scheduler = folder / "scheduler"
    scheduler.mkdir()
    settings = model.scheduler_config(Schedule())
    (scheduler / "scheduler_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return size


def _write_weights(folder: Path, network: Any, dtype: torch.dtype, is_encoder: bool) -> int:
    shapes = {
        name: tuple(p.shape)
        for name, p in network.state_dict().items()
        if name not in EMBEDDING_ALIASES
    }
    stem = "model" if is_encoder else "diffusion_pytorch_model"
    parts = [Part(name, dtype, shape) for name, shape in shapes.items()]
    shards = split(parts, stem, "5GB")
    metadata = {"format": "pt"}
    writer = ShardWriter(folder, shards, parts, metadata, f"{stem}.safetensors.index.json")
    try:
        for name, shape in shapes.items():
            writer.write({name: _values(name, shape).to(dtype)})
        writer.finish()
    finally:
        writer.close()
    return sum(part.nbytes for part in parts)


def _values(name: str, shape: tuple[int, ...]) -> Tensor:
    """Ones for the norms' weights, zeros for biases, normal numbers for matrices."""
    if name.endswith("gamma") or len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
    source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    # One random slice, repeated: 5.7 billion numbers would take minutes to draw.
    count, rows = prod(shape), prod(shape[1:])
    drawn = torch.empty(min(count, 4096 * rows)).normal_(0, SPREAD, generator=source)
    return drawn.repeat(-(-count // len(drawn)))[:count].view(shape)
