"""How other programs read exports, written down from their public code; nothing of ours is used."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lightx2v_sgmd.families.wan.keys import transformer_to_diffusers, transformer_to_original


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


def teacher_weights(teacher: Path) -> dict[str, Tensor]:
    return load_file(teacher / "transformer" / "diffusion_pytorch_model.safetensors")


def to_original(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {transformer_to_original(name): tensor for name, tensor in weights.items()}


def to_diffusers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {transformer_to_diffusers(name): tensor for name, tensor in weights.items()}


def lightx2v_fp8(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """``X.weight * X.weight_scale`` where there is a scale, ``[out, 1]``."""
    scales = {n: t for n, t in stored.items() if n.endswith(".weight_scale")}
    weights = {n: t.float() for n, t in stored.items() if n not in scales}
    for name, scale in scales.items():
        weight = name.removesuffix("_scale")
        weights[weight] = weights[weight] * scale
    return weights


def comfyui_loads(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that ComfyUI's Load Diffusion Model makes of a file.

    It strips the first of these prefixes that more than five names have, else ``model.``; drops
    what does not have it, if anything has; and finds a Wan by ``head.modulation``. Then come the
    scalar scales: those of layers with ``comfy_quant``, or in the form before December 2025 all,
    if ``scaled_fp8`` is there.
    """
    candidates = ("model.diffusion_model.", "model.model.", "net.")
    found = [p for p in candidates if sum(n.startswith(p) for n in stored) > 5]
    prefix = found[0] if found else "model."
    short = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)} or stored
    assert "head.modulation" in short, "could not detect the model's type"
    marked = [n.removesuffix(".comfy_quant") for n in short if n.endswith(".comfy_quant")]
    for layer in marked:
        settings = json.loads(bytes(short.pop(f"{layer}.comfy_quant").tolist()))
        assert settings["format"] == "float8_e4m3fn"
        short[f"{layer}.weight"] = short[f"{layer}.weight"].float() * short.pop(
            f"{layer}.weight_scale"
        )
    if marked:
        return {name: tensor.float() for name, tensor in short.items()}
    marker = short.pop("scaled_fp8", None)
    if marker is None:
        return short
    assert marker.dtype == torch.float8_e4m3fn
    scales = {n: t for n, t in short.items() if n.endswith(".scale_weight")}
    weights = {n: t.float() for n, t in short.items() if n not in scales}
    for name, scale in scales.items():
        weight = f"{name.removesuffix('.scale_weight')}.weight"
        weights[weight] = weights[weight] * scale
    return weights


def lightx2v_lora(base: dict[str, Tensor], lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapters merged as LightX2V does it: pairs with ``alpha / rank`` or 1, then ``.diff*``."""
    merged = {name: tensor.float().clone() for name, tensor in base.items()}
    endings = {".diff": ".weight", ".diff_b": ".bias", ".diff_m": ".modulation"}
    for name, tensor in lora.items():
        short = name.removeprefix("diffusion_model.")
        assert short != name
        if short.endswith(".lora_up.weight"):
            layer = short.removesuffix(".lora_up.weight")
            down = lora[f"diffusion_model.{layer}.lora_down.weight"].float()
            alpha = lora.get(f"diffusion_model.{layer}.alpha")
            scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
            merged[f"{layer}.weight"] += scale * (tensor.float() @ down)
        for ending, place in endings.items():
            target = short.removesuffix(ending) + place
            if short.endswith(ending) and target in merged:
                merged[target] += tensor.float()
    return merged


def comfyui_lora(base: dict[str, Tensor], lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapters merged as ComfyUI does it: names are looked up for each weight of the model."""
    merged = {name: tensor.float().clone() for name, tensor in base.items()}
    for name in base:
        layer = "diffusion_model." + name.removesuffix(".weight")
        if f"{layer}.lora_up.weight" in lora:
            down = lora[f"{layer}.lora_down.weight"].float()
            alpha = lora.get(f"{layer}.alpha")
            scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
            merged[name] += scale * (lora[f"{layer}.lora_up.weight"].float() @ down)
        if f"{layer}.diff" in lora and not name.endswith(".bias"):
            merged[name] += lora[f"{layer}.diff"].float()
        bias = f"{name.removesuffix('.weight')}.bias"
        if name.endswith(".weight") and f"{layer}.diff_b" in lora:
            merged[bias] += lora[f"{layer}.diff_b"].float()
    return merged


@torch.no_grad()
def evaluate(
    teacher: Path,
    weights: dict[str, Tensor] | None,
    lora: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One evaluation of diffusers' network with these weights or the teacher's.

    The inputs are those on which exports report their error, drawn here once more.
    """
    pipe = WanPipeline.from_pretrained(teacher)
    network: Any = pipe.transformer
    tables = copy.deepcopy(network.rope)
    network.to(dtype)
    network.rope = tables  # no weights: they stay as precise as they are
    if weights is not None:
        network.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()})
    if lora is not None:
        pipe.load_lora_weights(lora)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 2, 4, 4, generator=generator)
    text = torch.randn(8, 16, generator=generator)
    padded = torch.zeros(1, 512, 16)
    padded[0, :8] = text
    output: Tensor = network(
        x.to(dtype), torch.tensor([960.0]), padded.to(dtype), return_dict=False
    )[0]
    return output.float()


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()
