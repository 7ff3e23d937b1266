"""LoRA files on a base model: checked against the network, then applied or merged."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from infer.options import Lora
from lightx2v_sgmd.families.wan_keys import transformer_to_diffusers
from lightx2v_sgmd.files.safetensors_files import read_header, schedule_of
from lightx2v_sgmd.networks.adapters import METADATA_KEY, PREFIX
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError, first_line
from lightx2v_sgmd.system.optional_packages import why_unusable
from lightx2v_sgmd.system.quiet import no_warnings
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
from lightx2v_sgmd.untrusted.json_text import METADATA, parse_json


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
    problem = why_unusable("peft") if loras else None
    if problem is not None:
        raise UserError(f"lora: needs the package peft, which {problem}; pip install peft")
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    for lora in loras:
        factors, differences = _read(lora)
        told = _settings(lora)
        for name, tensor in differences.items():
            _check(lora, name, tuple(tensor.shape), shapes.get(name))
        for key, tensor in factors.items():
            layer, _, kind = key.removeprefix("transformer.").partition(".lora_")
            weight = shapes.get(f"{layer}.weight")
            if not key.startswith("transformer.") or kind not in ("A.weight", "B.weight"):
                weight = None
            if weight is not None and len(weight) == 2:
                out, width = weight
                rank = tensor.shape[0 if kind[0] == "A" else 1]
                if told and not told.get(f"{PREFIX}rank_pattern"):
                    rank = told[f"{PREFIX}r"]
                weight = (rank, width) if kind[0] == "A" else (out, rank)
            _check(lora, key, tuple(tensor.shape), weight)


def _check(lora: Lora, name: str, shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> None:
    if wanted is None:
        raise UserError(
            f"lora: {lora.path}: {name} matches no layer of this model; the file was made for "
            "another one"
        )
    if shape != wanted:
        raise UserError(
            f"lora: {lora.path}: {name} is {list(shape)}, the model's layer needs {list(wanted)}; "
            "the file was made for another size of model"
        )


_Tensors = dict[str, torch.Tensor]


def _read(lora: Lora) -> tuple[_Tensors, _Tensors]:
    """A file's matrix factors under diffusers' names, and its differences by parameter.

    diffusers applies factors only; what a file says of norms, biases, modulation and the patch
    embedding is added to those parameters here.
    """
    from diffusers import WanPipeline
    from safetensors.torch import load_file

    lora_schedule(lora)  # refuses what is no safetensors file
    saved = load_file(lora.path)
    differences = {}
    for key in [key for key in saved if key.endswith((".diff", ".diff_b", ".diff_m"))]:
        differences[_parameter(lora, key)] = saved.pop(key)
    try:
        factors: _Tensors = WanPipeline.lora_state_dict(saved) if saved else {}
    except Exception as error:  # names that diffusers does not foresee can raise anything
        raise UserError(
            f"lora: {lora.path}: is not a LoRA for a Wan model: {first_line(error)}"
        ) from error
    if not factors and not differences:
        raise UserError(f"lora: {lora.path}: holds no tensors")
    return factors, differences


_RANK = Whole(1, 2**16)
_ALPHA = Real(1e-9, 1e9)
_SETTINGS: Mapping[str, Field] = {
    "r": _RANK,
    "lora_alpha": _ALPHA,
    "rank_pattern": optional(ByLayer(_RANK)),
    "alpha_pattern": optional(ByLayer(_ALPHA)),
    "target_modules": optional(Several(LayerName(), 0, 4096)),
    "lora_bias": Flag(),
}


def _settings(lora: Lora) -> dict[str, Any] | None:
    """The rank, alpha and layers of a file under diffusers' names, under PEFT's names.

    Other files have their alphas as tensors, which ``_read`` multiplies in.
    """
    text = read_header(lora.path).metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        saved = parse_json(text, METADATA)
        told = {str(key).removeprefix(PREFIX): value for key, value in saved.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"lora: {lora.path}: its {METADATA_KEY} cannot be read") from error
    settings = {f"{PREFIX}{key}": told[key] for key in _SETTINGS if key in told}
    if problem := first_problem(told, _SETTINGS, frozenset({"r", "lora_alpha"})):
        raise UserError(f"lora: {lora.path}: in its {METADATA_KEY}, {problem}")
    return settings


def _parameter(lora: Lora, key: str) -> str:
    """The parameter that ``diffusion_model.<original layer>.diff`` and the like change.

    Modulation has two names for the same, for two programs: ``X.diff_m``, ``X.modulation.diff``.
    """
    layer, _, kind = key.removeprefix("diffusion_model.").rpartition(".")
    if kind == "diff_m":
        name = f"{layer}.modulation"
    elif layer.endswith("modulation"):
        name = layer
    else:
        name = f"{layer}.{'bias' if kind == 'diff_b' else 'weight'}"
    try:
        return transformer_to_diffusers(name)
    except UserError as error:
        raise UserError(
            f"lora: {lora.path}: {key} matches no layer of this model; the file was made for "
            "another one"
        ) from error


@torch.no_grad()
def add_loras(network: Any, loras: Sequence[Lora]) -> None:
    """Puts LoRA layers beside the network's.

    Args:
        network: ``WanTransformer3DModel`` with its weights.
        loras: As ``check_loras`` accepted them.
    """
    names, strengths = [], []
    parameters = dict(network.named_parameters())
    for index, lora in enumerate(loras):
        factors, differences = _read(lora)
        for name, difference in differences.items():
            p = parameters[name]
            p += (lora.strength * difference.to(p.device).float()).to(p.dtype)
        if factors:
            names.append(f"lora{index}")
            strengths.append(lora.strength)
            with no_warnings("diffusers.loaders.peft"), warnings.catch_warnings():
                # peft wonders about a second file, which is what was asked for.
                warnings.simplefilter("ignore")
                network.load_lora_adapter(
                    factors,
                    prefix="transformer",
                    adapter_name=names[-1],
                    metadata=_settings(lora),
                )
    if names:
        network.set_adapters(names, strengths)


class LoraUpdates:
    """The updates of LoRA files, merged into one part of a network at a time.

    Merged, nothing is computed twice, and the network can be fused and quantised. The sum is
    made in float32 and rounded to the network's precision once.

    Args:
        loras: As ``check_loras`` accepted them.
    """

    def __init__(self, loras: Sequence[Lora]) -> None:
        self._products: dict[str, list[tuple[torch.Tensor, torch.Tensor, float]]] = {}
        self._differences: dict[str, list[tuple[torch.Tensor, float]]] = {}
        for lora in loras:
            factors, differences = _read(lora)
            told = _settings(lora)
            for name, difference in differences.items():
                self._differences.setdefault(name, []).append((difference, lora.strength))
            for key, first in factors.items():
                layer, is_first, _ = key.removeprefix(PREFIX).partition(".lora_A.")
                if is_first:
                    second = factors[f"{PREFIX}{layer}.lora_B.weight"]
                    scale = lora.strength * _scale(told, layer, first.shape[0])
                    self._products.setdefault(f"{layer}.weight", []).append((first, second, scale))

    @torch.no_grad()
    def merge(self, prefix: str, part: torch.nn.Module) -> None:
        """Adds what belongs to a part, where its weights are.

        Args:
            prefix: The part's name in the network, "" for the network itself.
            part: The part; weights that are on no device yet are left alone.
        """
        for own, p in part.named_parameters():
            name = f"{prefix}.{own}" if prefix else own
            products, differences = self._products.get(name), self._differences.get(name)
            if p.is_meta or not (products or differences):
                continue
            wide = p.float() if p.dtype != torch.float32 else p
            for first, second, scale in products or ():
                wide.addmm_(second.to(p.device).float(), first.to(p.device).float(), alpha=scale)
            for difference, scale in differences or ():
                wide.add_(difference.to(p.device).float(), alpha=scale)
            if wide is not p:
                p.copy_(wide)


def _scale(told: dict[str, Any] | None, layer: str, rank: int) -> float:
    """The scale of a layer's product: alpha over the rank, 1 where the file says nothing."""
    if told is None:
        return 1.0
    from peft.utils.other import get_pattern_key

    alphas = told.get(f"{PREFIX}alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), layer), told[f"{PREFIX}lora_alpha"])
    return float(alpha) / rank
