"""The formats that exports are written in."""

from __future__ import annotations

from typing import Final

from weights.export_spec import Format
from weights.formats.comfyui import ComfyuiFormat
from weights.formats.diffusers import DiffusersFormat
from weights.formats.lora import LoraFormat
from weights.formats.wan import WanFormat

FORMATS: Final[dict[str, Format]] = {
    "diffusers": DiffusersFormat(),
    "wan": WanFormat(),
    "comfyui": ComfyuiFormat(),
    "lora": LoraFormat(),
}
