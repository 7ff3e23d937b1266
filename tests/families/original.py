"""Writes models in the layout in which Wan2.1 was released, as its own files are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lightx2v_sgmd.families.wan import keys as wan_keys
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of the release, with what it leaves out where it is not the default."""
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "model_type": "t2v" if config["in_channels"] == config["out_channels"] else "i2v",
        "text_len": 512,
        "dim": heads * head_dim,
        "num_heads": heads,
        "num_layers": config["num_layers"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"],
        "eps": config["eps"],
        "patch_size": config["patch_size"],
        "text_dim": config["text_dim"],
    }


def write_original(model: WanModel, folder: Path, suffix: str) -> Path:
    """Writes a diffusers model's parts under original names, as ``.pth`` or ``.safetensors``."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(original_config(model.transformer_config)))
    res_blocks = model.vae_config["num_res_blocks"]
    parts = (
        ("diffusion_pytorch_model", model.load_transformer(), wan_keys.transformer_to_original),
        ("Wan2.1_VAE", model.load_vae(), lambda name: wan_keys.vae_to_original(name, res_blocks)),
        (
            "models_t5_umt5-xxl-enc-bf16",
            model.load_text_encoder(torch.float32).network,
            wan_keys.text_encoder_to_original,
        ),
    )
    for stem, network, rename in parts:
        tensors = {rename(name): p.detach().clone() for name, p in network.named_parameters()}
        if suffix == ".pth":
            torch.save(tensors, folder / f"{stem}.pth")
        else:
            save_file(tensors, folder / f"{stem}{suffix}")
    shutil.copytree(Path(model.path) / "tokenizer", folder / "google" / "umt5-xxl")
    return folder


def open_tiny_original(folder: Path, like: WanModel) -> WanModel:
    """Opens such a folder; its VAE and text encoder are not of the one size that Wan2.1 has."""
    from dataclasses import replace

    config = like.source.config("text_encoder")
    return replace(open_wan(folder), vae_config=like.vae_config, text_encoder_config=config)
