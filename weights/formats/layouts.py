"""The layouts of the programs that full exports are for, and where their files are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from lightx2v_sgmd.families.wan_keys import transformer_to_original
from lightx2v_sgmd.files.dtypes import OPTIONS
from lightx2v_sgmd.files.safetensors_files import Header, weight_files
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import prepare_libraries
from weights.formats.layout import Layout
from weights.io.quantize import COMFYUI, FP8, LIGHTX2V
from weights.io.tensors import Tensors

STEM: Final = "diffusion_pytorch_model"
LORA_FILE: Final = "pytorch_lora_weights.safetensors"
COMFYUI_PREFIX: Final = "model.diffusion_model."
"""What ComfyUI's Load Diffusion Model strips (docs/decisions/006-comfyui-names.md)."""

FULL_FORMATS: Final = ("diffusers", "wan", "comfyui")


def layout_for(format: str, dtype: str, keep: Tensors | None = None) -> Layout:
    """The layout of a full export.

    Args:
        format: One of ``FULL_FORMATS``.
        dtype: A key of ``OPTIONS``, or ``fp8``, whose layers that are not quantized are bf16.
        keep: Weights of this precision already: each keeps the type in which it is stored, so that
            changing formats back and forth changes no bit.
    """
    main = torch.bfloat16 if dtype == "fp8" else OPTIONS[dtype]
    stored_name = _stored_names(format, COMFYUI_PREFIX)
    if keep is not None:
        return Layout(stored_name, keep.dtype)
    if format == "diffusers":
        return Layout(stored_name, lambda name: torch.float32 if kept_wide(name) else main)
    if dtype != "fp8":
        return Layout(stored_name, lambda name: main)
    if format == "wan":
        return Layout(stored_name, lambda name: main, LIGHTX2V)
    # Two elements ask ComfyUI to multiply at full precision, with the weights scaled back.
    markers = {f"{COMFYUI_PREFIX}scaled_fp8": torch.zeros(2).to(FP8)}
    return Layout(stored_name, lambda name: main, COMFYUI, markers)


def kept_wide(name: str) -> bool:
    """Whether diffusers computes with a weight in float32 whatever the rest is in."""
    prepare_libraries()
    from diffusers import WanTransformer3DModel

    return not set(WanTransformer3DModel._keep_in_fp32_modules).isdisjoint(name.split("."))


def _stored_names(format: str, prefix: str) -> Callable[[str], str]:
    if format == "diffusers":
        return str
    if format == "wan":
        return transformer_to_original
    return lambda name: prefix + transformer_to_original(name)


def names_of(format: str, header: Header) -> Callable[[str], str]:
    """From diffusers' names to those of an exported file, whatever its prefix."""
    prefix = COMFYUI_PREFIX
    if format == "comfyui":
        suffix = "head.modulation"
        found = [name for name in header.tensors if name.endswith(suffix)]
        prefix = found[0].removesuffix(suffix) if found else prefix
    return _stored_names(format, prefix)


def weights_in(folder: Path, format: str) -> list[Path]:
    """The files of an export's network.

    Raises:
        UserError: they are missing, or not as the format has them.
    """
    if format == "diffusers":
        return weight_files(folder / "transformer", STEM)
    if format == "wan":
        return weight_files(folder, STEM)
    if format == "lora":
        return [folder / LORA_FILE]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"{folder}: holds {len(files)} safetensors files, a comfyui export one")
    return files
