"""The formats that exports are written in."""

from __future__ import annotations

from typing import Final

from weights.comfyui_format import ComfyuiFormat
from weights.diffusers_format import DiffusersFormat
from weights.item import Format
from weights.lora_format import LoraFormat
from weights.wan_format import WanFormat

FORMATS: Final[dict[str, Format]] = {
    "diffusers": DiffusersFormat(),
    "wan": WanFormat(),
    "comfyui": ComfyuiFormat(),
    "lora": LoraFormat(),
}
