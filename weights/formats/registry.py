"""The formats that exports are written in, by name."""

from __future__ import annotations

from typing import Final

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.system.errors import UserError
from weights.formats.base import Format
from weights.formats.comfyui import ComfyuiFormat
from weights.formats.diffusers import DiffusersFormat
from weights.formats.lora import LoraFormat
from weights.formats.pipeline_lora import PipelineLoraFormat, applies
from weights.formats.wan import WanFormat

_ALL: Final[tuple[Format, ...]] = (DiffusersFormat(), WanFormat(), ComfyuiFormat(), LoraFormat())

FORMATS: Final[dict[str, Format]] = {format.name: format for format in _ALL}

_PIPELINE_LORA: Final = PipelineLoraFormat()


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in FORMATS:
        raise UserError(f"format: {name!r} is unknown; use {', '.join(FORMATS)}")
    return FORMATS[name]


def format_for(format: Format, model: Model) -> Format:
    """The format as it is written for a model: LoRA files of some families have one naming."""
    return _PIPELINE_LORA if isinstance(format, LoraFormat) and applies(model) else format
