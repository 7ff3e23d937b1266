"""LoRA files on a base model: checked against the network, then applied or merged."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.quiet import no_warnings
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.tensorfiles import read_header, schedule_of


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how much of it is added: 1 is what it was trained for."""

    path: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Reads ``FILE`` or ``FILE:STRENGTH``.

        Raises:
            UserError: the strength is no number.
        """
        path, colon, strength = text.rpartition(":")
        if not colon or strength.endswith(".safetensors") or Path(text).exists():
            return cls(Path(text))
        try:
            return cls(Path(path), float(strength))
        except ValueError:
            raise UserError(
                f"lora: {strength!r} is no number; write FILE or FILE:STRENGTH, as "
                "x.safetensors:0.8"
            ) from None


def lora_schedule(lora: Lora) -> Schedule | None:
    """The steps that a LoRA file says it was trained on, if it does.

    Raises:
        UserError: the file is missing, damaged or a pickle.
    """
    if not lora.path.is_file():
        raise UserError(f"lora: {lora.path}: no such file; give a .safetensors file")
    return schedule_of(read_header(lora.path).metadata)


def check_loras(loras: Sequence[Lora], network: Any) -> None:
    """Raises unless every tensor of every file belongs to a layer of the network and fits it.

    Args:
        loras: The files.
        network: The transformer; on the meta device it costs nothing.

    Raises:
        UserError: PEFT is not installed, or a file does not fit.
    """
    if loras and importlib.util.find_spec("peft") is None:
        raise UserError("lora: needs the package peft; pip install peft")
    modules = dict(network.named_modules())
    for lora in loras:
        for key, shape in _shapes(lora).items():
            layer, _, kind = key.removeprefix("transformer.").partition(".lora_")
            module = modules.get(layer)
            weight = getattr(module, "weight", None)
            if not key.startswith("transformer.") or weight is None or kind[:1] not in ("A", "B"):
                raise UserError(
                    f"lora: {lora.path}: {key} belongs to no layer of this model; the file was "
                    "made for another one"
                )
            found, fits = (
                (shape[1], weight.shape[1]) if kind[0] == "A" else (shape[0], weight.shape[0])
            )
            if kind in ("A.weight", "B.weight") and found != fits:
                raise UserError(
                    f"lora: {lora.path}: {key} has width {found}, the model's layer {fits}; the "
                    "file was made for another size of model"
                )


def _shapes(lora: Lora) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in _read(lora).items()}


def _read(lora: Lora) -> dict[str, torch.Tensor]:
    """The file's tensors under diffusers' names, whatever convention it has."""
    from diffusers import WanPipeline
    from safetensors.torch import load_file

    lora_schedule(lora)  # refuses what is no safetensors file
    try:
        state: dict[str, torch.Tensor] = WanPipeline.lora_state_dict(load_file(lora.path))
    except (ValueError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"lora: {lora.path}: is no LoRA of a Wan model: {first}") from error
    if not state:
        raise UserError(f"lora: {lora.path}: holds no tensors")
    return state


def add_loras(network: Any, loras: Sequence[Lora], merge: bool) -> None:
    """Puts LoRA layers beside the network's, or adds them into its weights.

    Args:
        network: ``WanTransformer3DModel`` with its weights.
        loras: As ``check_loras`` accepted them.
        merge: Into the weights: nothing is computed twice, and the network can be fused and
            quantised. The sum is rounded to the network's precision once.
    """
    if not loras:
        return
    names = [f"lora{index}" for index in range(len(loras))]
    with no_warnings("diffusers.loaders.peft"):
        for name, lora in zip(names, loras, strict=True):
            network.load_lora_adapter(_read(lora), prefix="transformer", adapter_name=name)
        network.set_adapters(names, [lora.strength for lora in loras])
        if merge:
            network.fuse_lora(adapter_names=names)
            network.unload_lora()
