"""LoRA files of all families, whoever wrote them: which tensor changes which weight, and how much.

Any part of a network's layers in any mix of spellings is read (``keys.py``); alpha stands in a
tensor for each layer, in the file's metadata, in ``adapter_config.json`` or nowhere
(``settings.py``). ``docs/decisions/027-lora-dialects.md`` says why this does not go through
diffusers' converters.

r rank
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lightx2v_sgmd.families.lora.keys import (
    ALPHA,
    DIFFERENCE,
    DOWN,
    UP,
    UP_BIAS,
    is_lora_key,
    parameter_of,
    spellings,
    taken_apart,
    unsupported_kind,
)
from lightx2v_sgmd.families.lora.settings import read_settings, scale_in
from lightx2v_sgmd.families.wan.variants import IMAGE_TO_VIDEO, variant_of
from lightx2v_sgmd.files.tensors.safetensors_files import Header, read_header
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.system.errors import UserError, shortened


@dataclass(frozen=True)
class LoraUpdate:
    """The matrices that a LoRA file adds to a network, at strength 1; alpha is multiplied in.

    Attributes:
        factors: ``down [r, in]`` and ``up [out, r]`` by linear layer (diffusers' name):
            ``up @ down`` is added to its weight.
        differences: Tensors that are added to other parameters, by diffusers' name; a convolution's
            product is one.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    differences: Mapping[str, Tensor]


@dataclass
class LoraLayer:
    """One layer's tensors in a file; ``name`` is its spelling there without prefix and ending."""

    name: str
    tensors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file whose tensors were assigned to a network's layers; nothing of it is loaded.

    Attributes:
        path: The file.
        header: The file's tensors and metadata.
        layers: Layers with factors, by diffusers' name.
        differences: The stored name of each parameter's difference, by diffusers' name.
        image_layers: Tensors of image-to-video layers, which are left out.
        settings: Rank and alpha from its metadata or its ``adapter_config.json``, under PEFT's
            names; None if neither says anything.
    """

    path: Path
    header: Header
    layers: Mapping[str, LoraLayer]
    differences: Mapping[str, str]
    image_layers: tuple[str, ...]
    settings: Mapping[str, Any] | None

    def rank(self, layer: str) -> int:
        """The rank of a layer's factors."""
        return self.header.tensors[self.layers[layer].tensors[DOWN]].shape[0]

    def scale(self, layer: str, read: Callable[[str], Tensor]) -> float:
        """The scale of a layer's product: alpha over the rank, 1 where nothing says otherwise.

        Args:
            layer: Diffusers' name of the layer.
            read: Loads a tensor of the file by its name there.
        """
        found, rank = self.layers[layer], self.rank(layer)
        if ALPHA in found.tensors:
            return float(read(found.tensors[ALPHA]).float().flatten()[0]) / rank
        return scale_in(self.settings, (found.name, layer), rank)


def open_lora(
    path: Path, shapes: Mapping[str, tuple[int, ...]], skip_image_layers: bool = False
) -> LoraFile:
    """Assigns a file's tensors to a network's layers and checks their shapes; loads nothing.

    Args:
        path: The file.
        shapes: Shapes of the network's parameters, by diffusers' name.
        skip_image_layers: True leaves out what belongs to an image-to-video model's own layers.

    Raises:
        UserError: the file is no LoRA that can be applied to this network; one line says why.
    """
    header = read_header(path)
    if not header.tensors:
        raise UserError(f"lora: {path}: holds no tensors; copy it again")
    _refuse_other_kinds(path, header.tensors)
    settings = read_settings(path, header)
    known = spellings(shapes)
    layers: dict[str, LoraLayer] = {}
    differences: dict[str, str] = {}
    image: list[str] = []
    has_image_layers = any(IMAGE_TO_VIDEO.search(name) for name in shapes)
    for key in header.tensors:
        stored, kind, what = taken_apart(key)
        if IMAGE_TO_VIDEO.search(key) and not has_image_layers:
            image.append(key)
        elif kind == DIFFERENCE:
            parameter = parameter_of(stored, what, known, shapes)
            if parameter is None:
                raise _stranger(path, key)
            differences.setdefault(parameter, key)
        else:
            layer = known.get(stored)
            if not kind or layer is None or f"{layer}.weight" not in shapes:
                raise _stranger(path, key)
            layers.setdefault(layer, LoraLayer(stored)).tensors[kind] = key
    if image and not skip_image_layers:
        raise UserError(
            f"lora: {path}: {len(image)} of its {len(header.tensors)} tensors belong to "
            f"image-to-video layers ({shortened(image[0])}, ...), which this text-to-video model "
            "does not have; use a LoRA for text-to-video, or add --skip-image-layers to apply "
            "the rest"
        )
    found = LoraFile(path, header, layers, differences, tuple(image), settings)
    _check_shapes(found, shapes)
    return found


def read_lora(
    path: Path, shapes: Mapping[str, tuple[int, ...]], skip_image_layers: bool = False
) -> LoraUpdate:
    """Loads what a file adds to a network; the arguments are those of ``open_lora``.

    Raises:
        UserError: as ``open_lora``, or a tensor has values that are not finite.
    """
    file = open_lora(path, shapes, skip_image_layers)
    reader = WholeTensors([path])

    def read(key: str) -> Tensor:
        tensor = reader.tensor(key)
        wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
        if not wide.isfinite().all():
            raise UserError(
                f"lora: {path}: {shortened(key)} has values that are not finite: the file is "
                "damaged, or its training diverged; copy it again, or use another one"
            )
        return wide

    factors: dict[str, tuple[Tensor, Tensor]] = {}
    differences = {name: read(key) for name, key in file.differences.items()}
    for layer, found in file.layers.items():
        down, up = read(found.tensors[DOWN]), read(found.tensors[UP])
        scale = file.scale(layer, read)
        if scale != 1:
            up = up.float() * scale
        shape = shapes[f"{layer}.weight"]
        if len(shape) == 2:
            factors[layer] = down.flatten(1), up.flatten(1)
        else:
            product = up.flatten(1).float() @ down.flatten(1).float()
            _add(differences, f"{layer}.weight", product.view(shape))
        if UP_BIAS in found.tensors:
            _add(differences, f"{layer}.bias", scale * read(found.tensors[UP_BIAS]).float())
    return LoraUpdate(factors, differences)


def alpha_source(file: LoraFile) -> str:
    """The place where a file keeps its alphas, in words."""
    if any(ALPHA in layer.tensors for layer in file.layers.values()):
        return "a tensor for each layer"
    if file.settings is not None:
        return str(file.settings["source"])
    return "none: alpha is the rank"


def _add(differences: dict[str, Tensor], name: str, more: Tensor) -> None:
    differences[name] = more if name not in differences else differences[name].float() + more


def _refuse_other_kinds(path: Path, keys: Iterable[str]) -> None:
    found = unsupported_kind(keys)
    if found is not None:
        kind, key = found
        raise UserError(
            f"lora: {path}: is {kind} ({shortened(key)}), which is not supported; give a "
            "plain LoRA (lora_A and lora_B, or lora_down and lora_up), or weights that it "
            "was merged into"
        )


def _stranger(path: Path, key: str) -> UserError:
    if not is_lora_key(key) and key.endswith((".weight", ".bias")):
        return UserError(
            f"lora: {path}: {shortened(key)} belongs to no LoRA: it is a whole weight; if the file "
            "holds a whole network, give it as --weights with --base"
        )
    if "joint_blocks" in key:
        return UserError(
            f"lora: {path}: {shortened(key)} is one of the names of SD3's authors (as in kohya's "
            "files), which are not read; convert it to diffusers' names"
        )
    variant = variant_of([key])
    made_for = variant or "another one"
    return UserError(
        f"lora: {path}: {shortened(key)} matches no layer of this model; use a LoRA that was made "
        f"for it, not for {made_for}"
    )


def _check_shapes(file: LoraFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    settings = file.settings or {}
    told = None if settings.get("rank_pattern") else settings.get("r")
    for name, key in file.differences.items():
        _check(file, key, f"{name} ", shapes[name])
    for layer, found in file.layers.items():
        weight, tensors = shapes[f"{layer}.weight"], found.tensors
        for kind, wanted in ((DOWN, weight[1:]), (UP, weight[:1])):
            if kind not in tensors:
                continue
            shape = file.header.tensors[tensors[kind]].shape
            rank = shape[0] if kind == DOWN else shape[1] if len(shape) > 1 else 1
            rank = told or rank
            whole = (rank, *wanted) if kind == DOWN else (*wanted, rank)
            if _without_ones(shape) != _without_ones(whole):
                raise _other_size(file, tensors[kind], shape, whole)
        pair = [kind for kind in (DOWN, UP) if kind in tensors]
        if len(pair) != 2:
            present = tensors[pair[0]] if pair else next(iter(tensors.values()))
            other = "lora_up (lora_B)" if pair == [DOWN] else "lora_down (lora_A)"
            raise UserError(
                f"lora: {file.path}: has {shortened(present)}, but no {other} of that layer; the "
                "file is incomplete, copy or convert it again"
            )
        up_rank = file.header.tensors[tensors[UP]].shape[1]
        if up_rank != file.rank(layer):
            raise UserError(
                f"lora: {file.path}: {shortened(tensors[UP])} has rank {up_rank}, the other "
                f"factor of that layer {file.rank(layer)}; the file is damaged, copy it again"
            )
        if ALPHA in tensors and math.prod(file.header.tensors[tensors[ALPHA]].shape) != 1:
            raise UserError(
                f"lora: {file.path}: {shortened(tensors['alpha'])} is not one number; the file "
                "is damaged, copy it again"
            )
        if UP_BIAS in tensors:
            _check(file, tensors[UP_BIAS], "", weight[:1])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its kernel if that is 1x1: some store matrices as such convolutions."""
    return shape[:2] if all(n == 1 for n in shape[2:]) else shape


def _check(file: LoraFile, key: str, name: str, wanted: tuple[int, ...]) -> None:
    shape = file.header.tensors[key].shape
    if shape != tuple(wanted):
        raise _other_size(file, name.strip() or key, shape, tuple(wanted))


def _other_size(
    file: LoraFile, name: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> UserError:
    return UserError(
        f"lora: {file.path}: {shortened(name)} is {list(found)}, the model's layer needs "
        f"{list(wanted)}; use a LoRA that was made for this size of model"
    )
