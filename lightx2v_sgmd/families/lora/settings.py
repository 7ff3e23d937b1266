"""Rank and alpha of a LoRA file: from its header, or from PEFT's configuration beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.lora_folder import PEFT_CONFIG, PEFT_FILE
from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.networks.adapters import METADATA_KEY, PREFIX
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.untrusted.fields import (
    ByLayer,
    Field,
    Flag,
    LayerName,
    Real,
    Several,
    Whole,
    first_problem,
    optional,
)
from lightx2v_sgmd.untrusted.json_text import METADATA, parse_json, read_json_object

_UNET: Final = "unet."
"""Diffusers' keys begin with this in files for a U-Net."""
_RANK: Final = Whole(1, 2**16)
_ALPHA: Final = Real(1e-9, 1e9)
_SETTINGS: Final[Mapping[str, Field]] = {
    "r": _RANK,
    "lora_alpha": _ALPHA,
    "rank_pattern": optional(ByLayer(_RANK)),
    "alpha_pattern": optional(ByLayer(_ALPHA)),
    "target_modules": optional(Several(LayerName(), 0, 4096)),
    "lora_bias": Flag(),
    "use_rslora": Flag(),
    "use_dora": Flag(),
}


def read_settings(path: Path, header: Header) -> dict[str, Any] | None:
    """Rank and alpha as the file's metadata or PEFT's configuration beside it say them."""
    text = header.metadata.get(METADATA_KEY)
    config = path.parent / PEFT_CONFIG
    if text is not None:
        return _checked(path, f"its {METADATA_KEY}", _parsed(path, text))
    if path.name == PEFT_FILE and config.is_file():
        saved = read_json_object(config, remedy="copy the LoRA again")
        kind = str(saved.get("peft_type", "LORA"))
        if kind != "LORA":
            raise UserError(
                f"lora: {config}: describes a {shortened(kind)} adapter, which is not supported; "
                "give a plain LoRA"
            )
        # The layers are those in the file; PEFT may name them by a pattern, which is not run.
        told = {key: value for key, value in saved.items() if key != "target_modules"}
        return _checked(path, PEFT_CONFIG, told)
    alpha = header.metadata.get("ss_network_alpha")
    if alpha is None:
        return None
    try:
        number = float(alpha)
    except ValueError:  # "None" or "Dynamic"
        return None
    if not 0 < number < 1e9:
        raise UserError(
            f"lora: {path}: in its metadata, ss_network_alpha is {shortened(alpha)}, which is no "
            "alpha; the file is damaged, copy it again"
        )
    return {"lora_alpha": number, "source": "ss_network_alpha in the metadata"}


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        saved = parse_json(text, METADATA)
        return {str(k).removeprefix(PREFIX).removeprefix(_UNET): v for k, v in saved.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"lora: {path}: its {METADATA_KEY} cannot be read; copy it again"
        ) from error


def _checked(path: Path, source: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    if problem := first_problem(saved, _SETTINGS, frozenset({"r", "lora_alpha"})):
        raise UserError(f"lora: {path}: in {source}, {problem}; copy it again")
    if saved.get("use_dora"):
        raise UserError(
            f"lora: {path}: is a DoRA file ({source} says so), which is not supported; give a "
            "plain LoRA"
        )
    where = source.removeprefix("its ")
    return {**{key: saved[key] for key in _SETTINGS if key in saved}, "source": where}


def scale_in(settings: Mapping[str, Any] | None, names: Iterable[str], rank: int) -> float:
    """The scale of a layer's product as settings state it; 1 where there are none.

    Args:
        settings: As ``read_settings`` returned them.
        names: The layer's names, by which patterns of alpha may find it; the last one counts most.
        rank: Rank of the layer's factors.
    """
    if settings is None:
        return 1.0
    alpha = settings["lora_alpha"]
    patterns = settings.get("alpha_pattern") or {}
    if patterns:
        from peft.utils.other import get_pattern_key

        for name in names:
            alpha = patterns.get(get_pattern_key(list(patterns), name), alpha)
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
