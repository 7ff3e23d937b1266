"""comfyui: a file of weights for each network, and workflows that load them and run the steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.files.expert_files import expert_files
from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.schedule import Schedule, even_timesteps, evenly_spaced
from lightx2v_sgmd.system.errors import UserError
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.base import NetworkFormat
from weights.formats.comfyui_workflow import (
    CLIP,
    TEXT_ENCODER,
    VAE,
    WORKFLOW_API_FILE,
    WORKFLOW_FILE,
    StartImage,
    pair_workflow,
    to_ui,
    workflow,
)
from weights.formats.layout import Layout
from weights.formats.programs import COMFYUI as COMFYUI_PROGRAM
from weights.formats.programs import section
from weights.formats.wan import high_noise_steps, short_task
from weights.io.json_files import json_problems, write_json
from weights.io.network import network_problems, write_network
from weights.io.quantize import COMFYUI, COMFYUI_LEGACY, FP8, is_8_bit

PREFIX: Final = "model.diffusion_model."
"""The prefix that ComfyUI's Load Diffusion Model strips (docs/decisions/006-comfyui-names.md)."""

_PUBLISHED: Final = {
    ("t2v", 1536, 30): "wan2.1_t2v_1.3B_bf16.safetensors",
    ("t2v", 5120, 40): "wan2.1_t2v_14B_bf16.safetensors",
    ("i2v", 5120, 40): "wan2.1_i2v_480p_14B_bf16.safetensors",
}
"""Names of Comfy-Org's files of Wan2.1, by task and the network's width and number of layers."""
_PUBLISHED_PAIRS: Final = {
    ("t2v", 5120, 40): "wan2.2_t2v_{part}_14B_fp16.safetensors",
    ("i2v", 5120, 40): "wan2.2_i2v_{part}_14B_fp16.safetensors",
}
"""Names of Comfy-Org's files of Wan2.2-A14B, by the same and by expert."""
_ONE_FILE: Final = "1000000GB"
_USAGE: Final = """\
## ComfyUI

Put `{weights}` into `ComfyUI/models/diffusion_models`, Wan2.1's text encoder
(`{text_encoder}`) into `models/text_encoders` and its VAE (`{vae}`) into
`models/vae`, and open `{workflow}`: shift {shift:g}, {sampler}, simple, {count} steps, cfg 1.
`workflow_api.json` is the same for the HTTP API.
{image}{versions}"""
_USAGE_OF_PAIR: Final = """\
## ComfyUI

Put `{weights}` into `ComfyUI/models/diffusion_models`, Wan2.1's text encoder
(`{text_encoder}`) into `models/text_encoders` and its VAE (`{vae}`) into
`models/vae`, and open `{workflow}`: shift {shift:g}, {sampler}, simple, {count} steps, cfg 1. The
first {high_noise_steps} steps load the high-noise file, the others the low-noise file.
`workflow_api.json` is the same for the HTTP API.
{image}{versions}"""
_IMAGE: Final = """\
The node Load Image takes the image that the video starts from; what does not fit the video's shape
is cut off.
"""
_CLIP: Final = """\
CLIP's vision encoder (`{clip}`) goes into `models/clip_vision`.
"""
_VERSIONS: Final = {
    "fp8": "These 8-bit weights need ComfyUI of December 2025 or newer; `--dtype fp8-legacy`\n"
    "writes the form before that.\n",
    "fp8-legacy": "ComfyUI before December 2025 rounds this file's embeddings and head to 8 bits\n"
    "too, which doubles its error.\n",
}


class ComfyuiFormat(NetworkFormat):
    """Each network in one file under the original names behind a prefix, with workflows."""

    name = "comfyui"
    dtypes = ("bf16", "fp16", "fp32", "fp8", "fp8-legacy")
    stored_as = "{dtype}, original names behind ComfyUI's prefix"
    library = "diffusion-single-file"
    programs = (COMFYUI_PROGRAM,)
    holds_experts = True

    def check(self, spec: ExportSpec) -> None:
        """Refuses what the program cannot express; see ``Format.check``."""
        check_even(spec.source.schedule)

    def write(self, spec: ExportSpec, folder: Path, advance: Advance) -> Losses | None:
        """Writes weights and configurations into an empty folder; returns what was lost."""
        losses = {
            each.part: write_network(
                replace(each, max_shard_size=_ONE_FILE), folder, stem(each), advance
            )
            for each in spec.experts
        }
        for name, content in _workflows(spec).items():
            write_json(folder / name, content)
        return Losses.of_experts(losses) if spec.source.second else losses[""]

    def problems(
        self, spec: ExportSpec, folder: Path, losses: Losses | None, advance: Advance
    ) -> list[str]:
        """Lists what the program would read that differs from the source."""
        problems = []
        for each in spec.experts:
            if not (folder / f"{stem(each)}.safetensors").is_file():
                problems.append(f"{stem(each)}.safetensors, which the workflows name, is missing")
        for name, content in _workflows(spec).items():
            problems += json_problems(folder / name, content)
        config = spec.source.model.transformer_config
        for each in spec.experts:
            problems += network_problems(each, folder, config, losses, advance)
        return problems

    def usage(self, spec: ExportSpec, values: Mapping[str, Any]) -> str:
        """The model card's section on ComfyUI."""
        text = (_USAGE if spec.source.second is None else _USAGE_OF_PAIR).format(
            **values,
            versions=_VERSIONS.get(spec.dtype, ""),
            weights="` and `".join(f"{stem(each)}.safetensors" for each in spec.experts),
            high_noise_steps=high_noise_steps(spec),
            text_encoder=TEXT_ENCODER,
            vae=VAE,
            image=image_usage(spec.source.model),
            workflow=WORKFLOW_FILE,
            sampler=spec.source.schedule.comfyui_sampler(),
        )
        return section(COMFYUI_PROGRAM, spec.source.model.transformer_config, text)

    def weight_files(self, folder: Path, expert: int = 0) -> list[Path]:
        """The one safetensors file of the folder, or that of an expert."""
        files = sorted(folder.glob("*.safetensors"))
        pair = expert_files(files)
        if pair is not None:
            return [pair[expert]]
        if len(files) != 1:
            raise UserError(
                f"{folder}: holds {len(files)} safetensors files, and a comfyui export one, or one "
                "for each of two experts; remove what is too many, or export again"
            )
        return files

    def expert_count(self, folder: Path) -> int:
        """The number of its networks: 2 where there is a file for each of two experts."""
        return 1 if expert_files(sorted(folder.glob("*.safetensors"))) is None else 2

    def stored_names(self, header: Header | None = None) -> Callable[[str], str]:
        """The original names behind ComfyUI's prefix, or behind the one that files have."""
        prefix, suffix = PREFIX, "head.modulation"
        for name in header.tensors if header is not None else ():
            if name.endswith(suffix):
                prefix = name.removesuffix(suffix)
                break
        return lambda name: prefix + transformer_to_original(name)

    def layout_in(self, dtype: str, main: torch.dtype, model: Model | None = None) -> Layout:
        """The layout in one type, or with ComfyUI's scales for 8-bit matrices."""
        if not is_8_bit(dtype):
            return super().layout_in(dtype, main, model)
        if dtype == "fp8":
            return Layout(self.stored_names(), lambda name: main, COMFYUI)
        # Two elements ask ComfyUI to multiply at full precision, with the weights scaled back.
        markers = {f"{PREFIX}scaled_fp8": torch.zeros(2).to(FP8)}
        return Layout(self.stored_names(), lambda name: main, COMFYUI_LEGACY, markers)


def stem(spec: ExportSpec) -> str:
    """The name of a network's file: teacher, method, steps, and expert if there are two."""
    about = spec.source.about
    made = f"{teacher_name(spec)}_{about.method['name']}_{len(about.schedule)}step"
    return plain_name("_".join(part for part in (made, spec.part, spec.dtype) if part))


def teacher_name(spec: ExportSpec) -> str:
    """The name of the model that the student started from, without its owner or folder."""
    path = spec.source.about.base.rstrip("/")
    return path.rsplit("/", 1)[-1].removesuffix("-Diffusers").lower()


def base_weights(spec: ExportSpec) -> str:
    """The teacher's file in ``models/diffusion_models``, as Comfy-Org names it for its size."""
    model = spec.source.model
    network = short_task(model), model.width, model.num_blocks
    if spec.part:
        published = _PUBLISHED_PAIRS.get(network)
        return (published or f"{plain_name(teacher_name(spec))}_{{part}}.safetensors").format(
            part=spec.part
        )
    published = _PUBLISHED.get(network, f"{plain_name(teacher_name(spec))}.safetensors")
    return published.replace("480p", "720p") if "720p" in teacher_name(spec) else published


def plain_name(name: str) -> str:
    """A file's name that every system takes."""
    return re.sub(r"[^a-z0-9._-]+", "-", name)


def _workflows(spec: ExportSpec) -> Mapping[str, Mapping[str, Any]]:
    files = [f"{stem(each)}.safetensors" for each in spec.experts]
    if len(files) == 1:
        api = workflow(spec.source.about, files[0], image=start_image(spec.source.model))
    else:
        pair, steps = (files[0], files[1]), high_noise_steps(spec)
        api = pair_workflow(spec.source.about, pair, steps, image=start_image(spec.source.model))
    return {WORKFLOW_API_FILE: api, WORKFLOW_FILE: to_ui(api)}


def start_image(model: Model) -> StartImage:
    """The part that an image has in a model's workflow."""
    if model.takes_image != "always":
        return "none"
    return "latents and clip" if "image_encoder" in model.image_encoder_parts else "latents"


def image_usage(model: Model) -> str:
    """A card's sentences on the image that videos start from; empty for a text-to-video model."""
    image = start_image(model)
    clip = _CLIP.format(clip=CLIP) if image == "latents and clip" else ""
    return "" if image == "none" else _IMAGE + clip


def check_even(schedule: Schedule) -> None:
    """ComfyUI's ``simple`` scheduler takes every n-th of 1000 shifted timesteps.

    Raises:
        UserError: these steps are not spaced that way, or no sampler takes them.
    """
    schedule.comfyui_sampler()
    if not evenly_spaced(schedule.base):
        even = list(even_timesteps(len(schedule)))
        raise UserError(
            f"schedule.base: ComfyUI spaces steps evenly; use {even} instead of "
            f"{list(schedule.base)}"
        )
