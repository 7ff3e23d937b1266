"""Low-rank adapters: trained, or extracted from a full student, and read back from their file.

What a student differs from its teacher by is ``student - teacher``. Of each matrix the closest
product ``up @ down`` of a small rank is kept (truncated SVD), of anything else (norms, biases,
modulation, the patch embedding) the difference itself.

Names are the portable ones, ``diffusion_model.<original name>.lora_down.weight``. Three programs
read them, each with its own habits:

- ``.alpha`` is that of the training, or of extracted adapters their rank: the product counts
  ``alpha / rank`` times. Only layers inside blocks have it: diffusers refuses it elsewhere, and a
  missing alpha means once in every program, so there the factor is multiplied in.
- Modulation is written twice, as ``.diff_m`` (LightX2V) and ``.modulation.diff`` (ComfyUI). Each
  program applies its own form and skips the other.
- diffusers skips every ``.diff``, so there a student is reproduced less well; the report has both
  errors.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.lora.keys import DOWN, UP, UP_BIAS
from lightx2v_sgmd.families.lora.reading import LoraFile, open_lora
from lightx2v_sgmd.families.lora.updates import LoraUpdates
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.files.tensors.safetensors_files import Header, check_keys
from lightx2v_sgmd.job.schema import AdapterSettings
from lightx2v_sgmd.networks.adapters import PREFIX as ADAPTERS
from lightx2v_sgmd.networks.adapters import trained_shapes
from weights.io.quantize import norm
from weights.io.tensors import read_tensor

PREFIX: Final = "diffusion_model."
OVERSAMPLING: Final = 16
"""Directions beyond the rank that the randomized SVD looks along."""
POWER_ITERATIONS: Final = 4


@dataclass(frozen=True)
class Factors:
    """A matrix ``[out, in]`` as ``scale * up [out, rank] @ down [rank, in]``."""

    up: Tensor
    down: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Columns of ``up``."""
        return self.up.shape[1]

    def product(self) -> Tensor:
        """The matrix, float32."""
        return self.scale * (self.up.float() @ self.down.float())


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """True if a weight (diffusers' name) is a linear layer's; modulation tables are not."""
    return name.endswith(".weight") and len(shape) == 2


def factorize(
    delta: Tensor, name: str, rank: int | None = None, energy: float | None = None
) -> Factors:
    """The closest factors of a rank, or of the least rank that holds enough energy.

    Randomized SVD (Halko, Martinsson and Tropp, arXiv 0909.4061, Alg. 4.4 and 5.1), exact where
    the rank is a large share of the matrix. The seed comes from the name: the same student gives
    the same factors.

    Args:
        delta: ``[out, in]`` float32.
        name: The weight's name; it seeds the randomized SVD.
        rank: The rank, or None.
        energy: The share of the squared Frobenius norm to hold, or None.
    """
    smallest = min(delta.shape)
    target = rank if rank is not None else 16
    total = norm(delta) ** 2
    while True:
        u, s, v = _svd(delta, min(target, smallest), name)
        held = torch.cumsum(s.double() ** 2, 0)
        if energy is None:
            kept = min(target, smallest)
            break
        enough = torch.nonzero(held >= energy * total)
        if len(enough) or len(s) == smallest:
            kept = int(enough[0]) + 1 if len(enough) else smallest
            break
        target *= 2
    root = s[:kept].sqrt()
    return Factors(u[:, :kept] * root, (v[:, :kept] * root).T.contiguous())


def _svd(delta: Tensor, rank: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """``rank`` singular triplets or more, the largest first."""
    looked_at = rank + OVERSAMPLING
    if 2 * looked_at >= min(delta.shape):
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        return u, s, vh.T
    # svd_lowrank takes no generator, so the global one is set and put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        u, s, v = torch.svd_lowrank(delta, q=looked_at, niter=POWER_ITERATIONS)
    return u[:, :rank], s[:rank], v[:, :rank]


def layer_of(name: str) -> str:
    """The portable name of a weight's layer: ``diffusion_model.blocks.0.self_attn.q``."""
    return PREFIX + transformer_to_original(name).removesuffix(".weight").removesuffix(".bias")


def factor_names(name: str) -> tuple[str, str, str | None]:
    """The names of ``up``, ``down`` and ``alpha``; None where a layer has no alpha."""
    layer = layer_of(name)
    alpha = f"{layer}.alpha" if name.startswith("blocks.") else None
    return f"{layer}.lora_up.weight", f"{layer}.lora_down.weight", alpha


def difference_names(name: str) -> list[str]:
    """The names under which the difference of a weight that is not a matrix is stored."""
    layer = layer_of(name)
    if name.endswith("scale_shift_table"):
        return [f"{layer.removesuffix('.modulation')}.diff_m", f"{layer}.diff"]
    return [f"{layer}.diff_b" if name.endswith(".bias") else f"{layer}.diff"]


def diffusers_takes(name: str, shape: tuple[int, ...]) -> bool:
    """True if ``load_lora_weights`` applies what a file has for a weight.

    It takes linear layers with their biases, and skips norms, modulation and convolutions.
    """
    if name.endswith(".bias"):
        return "norm" not in name and not name.startswith("patch_embedding")
    return is_matrix(name, shape)


@dataclass(frozen=True)
class StoredAdapters:
    """The adapters of a file, under any program's names; nothing of it is loaded yet."""

    file: LoraFile

    @classmethod
    def checked(cls, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> StoredAdapters:
        """Makes sure that every tensor belongs to a layer of the network and fits it.

        Raises:
            UserError: a tensor belongs to none, or half a pair is missing.
        """
        return cls(open_lora(path, shapes))

    @property
    def header(self) -> Header:
        """The header of the file."""
        return self.file.header

    def delta(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The tensor that is added to a weight, float32; None if there is none."""
        if name in self.file.differences:
            return self._read(self.file.differences[name]).float().reshape(shape)
        layer, _, kind = name.rpartition(".")
        if kind == "bias" and layer in self.file.layers:
            stored = self.file.layers[layer].tensors.get(UP_BIAS)
            return None if stored is None else self._scale(layer) * self._read(stored).float()
        factors = self.factors(name)
        return None if factors is None else factors.product().reshape(shape)

    def factors(self, name: str) -> Factors | None:
        """The pair of a matrix, or of a convolution's kernel; None if the file has none."""
        layer = name.removesuffix(".weight")
        if layer == name or layer not in self.file.layers:
            return None
        tensors = self.file.layers[layer].tensors
        # A convolution's down factor has its kernel, which is part of the matrix's rows.
        up, down = (self._read(tensors[kind]).flatten(1) for kind in (UP, DOWN))
        return Factors(up, down, self._scale(layer))

    def where(self) -> str:
        """The file of the adapters, for messages."""
        return str(self.file.path)

    def _scale(self, layer: str) -> float:
        return self.file.scale(layer, self._read)

    def _read(self, name: str) -> Tensor:
        return read_tensor(self.header.tensors[name])


@dataclass(frozen=True)
class StackedAdapters:
    """Trained adapters together with the LoRAs of their teacher: changes of the teacher's base.

    Attributes:
        trained: The adapters that were trained beside the teacher's weights.
        merged: The LoRA files that made the teacher of its base.
    """

    trained: TrainedAdapters
    merged: LoraUpdates

    @classmethod
    def of(cls, trained: TrainedAdapters, model: Model) -> StackedAdapters | None:
        """The changes of a teacher's base; None if they are no products of two matrices.

        Args:
            trained: The adapters beside the teacher's weights.
            model: The teacher with its LoRAs.

        Raises:
            UserError: a LoRA cannot be read.
        """
        shapes = model.transformer_shapes()
        merged = LoraUpdates(model.loras, shapes)
        whole = [name for name in shapes if is_matrix(name, shapes[name])]
        return None if any(merged.has_difference(name) for name in whole) else cls(trained, merged)

    @property
    def header(self) -> Header:
        """The header of the trained adapters' file."""
        return self.trained.header

    def delta(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The tensor that is added to a weight of the base, float32; None if there is none."""
        trained = self.trained.delta(name, shape)
        if name not in self.merged:
            return trained
        delta = torch.zeros(shape) if trained is None else trained
        self.merged.add_to(name, delta)
        return delta

    def factors(self, name: str) -> Factors | None:
        """The pair of a matrix: factors side by side; None if nothing changes the matrix."""
        trained = self.trained.factors(name)
        pairs = self.merged.factors(name)
        if trained is not None:
            pairs.append((trained.scale * trained.up, trained.down))
        if not pairs:
            return None
        ups, downs = zip(*pairs, strict=True)
        return Factors(torch.cat(ups, dim=1), torch.cat(downs))

    def where(self) -> str:
        """The file of the trained adapters, for messages."""
        return self.trained.where()


@dataclass(frozen=True)
class TrainedAdapters:
    """The adapters of a checkpoint; nothing of it is loaded yet.

    Attributes:
        header: The header of its file, with the names of ``lightx2v_sgmd.networks.adapters``.
        lora: The settings that they were trained with.
    """

    header: Header
    lora: AdapterSettings

    @classmethod
    def checked(
        cls, header: Header, lora: AdapterSettings, model: Model, what: str
    ) -> TrainedAdapters:
        """Makes sure that the file holds exactly what was trained.

        Raises:
            UserError: something is missing, unexpected or of another shape.
        """
        shapes = trained_shapes(model, lora)
        check_keys(header, {name: tuple(shape) for name, shape in shapes.items()}, what)
        return cls(header, lora)

    def delta(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The tensor that is added to a weight, float32; None if there is none."""
        factors = self.factors(name)
        return None if factors is None else factors.product()

    def factors(self, name: str) -> Factors | None:
        """The pair of a matrix; None if it was not trained."""
        layer = ADAPTERS + name.removesuffix(".weight")
        up, down = (self.header.tensors.get(f"{layer}.lora_{kind}.weight") for kind in "BA")
        if not name.endswith(".weight") or up is None or down is None:
            return None
        return Factors(read_tensor(up), read_tensor(down), self.lora.scale)

    def where(self) -> str:
        """The file of the adapters, for messages."""
        return str(next(iter(self.header.tensors.values())).file)
