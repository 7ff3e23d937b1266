"""LoRA files on a base model: checked against the network, then applied beside its layers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from infer.options import Lora
from lightx2v_sgmd.families.lora.reading import open_lora, read_lora
from lightx2v_sgmd.families.lora.updates import Shapes
from lightx2v_sgmd.files.tensors.safetensors_files import read_header, schedule_of
from lightx2v_sgmd.networks.adapters import PREFIX
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import why_unusable
from lightx2v_sgmd.system.quiet import no_warnings

FactorPair = tuple[torch.Tensor, torch.Tensor]


def lora_schedule(lora: Lora) -> Schedule | None:
    """The steps that a LoRA file says it was trained on, if it does.

    Raises:
        UserError: the file is missing, damaged or a pickle.
    """
    if not lora.path.is_file():
        raise UserError(
            f"lora: {lora.path}: no such file; give a .safetensors file, or the folder of one"
        )
    return schedule_of(read_header(lora.path).metadata)


def check_loras(
    loras: Sequence[Lora], shapes: Shapes, skip_image_layers: bool = False, quiet: bool = True
) -> None:
    """Raises unless every tensor of every file belongs to a layer of the network and fits it.

    Args:
        loras: The files.
        shapes: Shapes of the transformer's parameters, by name.
        skip_image_layers: True leaves out the layers of image-to-video models.
        quiet: True does not say what is left out.

    Raises:
        UserError: PEFT is not installed, or a file does not fit or has values that are not finite.
    """
    problem = why_unusable("peft") if loras else None
    if problem is not None:
        raise UserError(f"lora: needs the package peft, which {problem}; pip install peft")
    for lora in loras:
        left_out = open_lora(lora.path, shapes, skip_image_layers).image_layers
        if left_out:
            what = f"{len(left_out)} tensors of image-to-video layers are left out"
            note(f"lora: {lora.path}: {what}", quiet)
        read_lora(lora.path, shapes, skip_image_layers)


@torch.no_grad()
def add_loras(network: Any, loras: Sequence[Lora], skip_image_layers: bool = False) -> None:
    """Puts LoRA layers beside the network's.

    diffusers and PEFT apply factors; what a file says of norms, biases, modulation and the patch
    embedding is added to those parameters here.

    Args:
        network: ``WanTransformer3DModel`` with its weights.
        loras: As ``check_loras`` accepted them.
        skip_image_layers: As ``check_loras`` got it.
    """
    names, strengths = [], []
    parameters = dict(network.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    for index, lora in enumerate(loras):
        update = read_lora(lora.path, shapes, skip_image_layers)
        for name, difference in update.differences.items():
            p = parameters[name]
            p += (lora.strength * difference.to(p.device).float()).to(p.dtype)
        if update.factors:
            names.append(f"lora{index}")
            strengths.append(lora.strength)
            with no_warnings("diffusers.loaders.peft"), warnings.catch_warnings():
                # peft wonders about a second file, which is what was asked for.
                warnings.simplefilter("ignore")
                network.load_lora_adapter(
                    _under_diffusers_names(update.factors),
                    prefix="transformer",
                    adapter_name=names[-1],
                    metadata=_settings(update.factors),
                )
    if names:
        network.set_adapters(names, strengths)


def _under_diffusers_names(factors: Mapping[str, FactorPair]) -> dict[str, torch.Tensor]:
    return {
        f"{PREFIX}{layer}.lora_{kind}.weight": tensor
        for layer, pair in factors.items()
        for kind, tensor in zip("AB", pair, strict=True)
    }


def _settings(factors: Mapping[str, FactorPair]) -> dict[str, Any]:
    """PEFT's settings for factors in which alpha is multiplied in: alpha is each layer's rank.

    Stated rather than left to diffusers, whose older versions mistake the scale where ranks differ.
    """
    ranks = {layer: down.shape[0] for layer, (down, _) in factors.items()}
    usual = Counter(ranks.values()).most_common()[0][0]
    others = {layer: rank for layer, rank in ranks.items() if rank != usual}
    told: dict[str, Any] = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
    }
    return {f"{PREFIX}{key}": value for key, value in told.items()}
