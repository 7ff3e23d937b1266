"""Measures what a file of adapters loses of a student, for each program that takes it.

The number that counts is that of the whole rollout: the student's network and the teacher's with
the adapters run the student's steps from the same noise, and their latents are compared. Of one
evaluation a small part of the error shows, since later steps start from states that are off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.layout import read_finite
from weights.formats.programs import COMFYUI, LIGHTX2V, refusal
from weights.io.adapters import StackedAdapters, StoredAdapters, diffusers_takes
from weights.io.lora_names import NAMES, PORTABLE
from weights.io.probe import Probe
from weights.io.quantize import norm, relative_error
from weights.io.tensors import Adapters, MergedTensors, Tensors

OURS: Final = "lightx2v-sgmd"
ROLLOUT: Final = "rollout_error"
"""The entry of ``losses.json`` with the error of the whole rollout by program."""
_OTHERS: Final = {
    "diffusers": "diffusers",
    "peft": "PEFT",
    "musubi": "musubi-tuner",
    "lightx2v_train": "LightX2V's trainer",
}
STUDENT: Final = "student"
"""The key in ``ExportSpec.probed`` of the student's evaluation."""


@dataclass(frozen=True)
class _InDiffusers:
    """The part of adapters that ``load_lora_weights`` and PEFT apply."""

    adapters: StoredAdapters

    def delta(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        return self.adapters.delta(name, shape) if diffusers_takes(name, shape) else None

    def where(self) -> str:
        return self.adapters.where()


def linear_alone(spec: ExportSpec) -> bool:
    """True if the adapters change linear layers and their biases and nothing else.

    Then every program applies all of the file. Extracted adapters change norms, modulation and the
    patch embedding too, and so may LoRAs of the teacher that trained ones stand on.
    """
    adapters, shapes = spec.source.adapters, spec.source.tensors.shapes
    if spec.only == "blocks":
        return True
    if adapters is None:
        return False
    others = [name for name, shape in shapes.items() if not diffusers_takes(name, shape)]
    if isinstance(adapters, StackedAdapters):
        return not any(name in adapters.merged for name in others)
    if isinstance(adapters, StoredAdapters):
        return not any(name in adapters.file.differences for name in others)
    return True


def programs_of(spec: ExportSpec) -> dict[str, bool]:
    """The programs that the export's card names, and whether each applies all of the file."""
    if spec.names != PORTABLE.name:
        return {OURS: True, _OTHERS[NAMES[spec.names].name]: True}
    config = spec.source.model.transformer_config
    running = [p.name for p in (COMFYUI, LIGHTX2V) if refusal(p, config) is None]
    whole = linear_alone(spec)
    return {OURS: True, **dict.fromkeys(running, True), "diffusers": whole, "PEFT": whole}


def passes(spec: ExportSpec) -> tuple[int, int]:
    """Counts how often a network's weights are read to measure the loss, and to verify it."""
    each = 1 if spec.keeps_network else 1 + len(spec.source.schedule)
    measured = 1 + (2 if all(programs_of(spec).values()) else 3) * each
    return measured, 2


def measured_losses(
    spec: ExportSpec,
    teacher: Tensors,
    adapters: StoredAdapters,
    advance: Advance,
) -> Losses:
    """The losses of a written file.

    Args:
        spec: The export.
        teacher: The weights that the adapters are for.
        adapters: The written file.
        advance: Called after each weight that is read for a pass.
    """
    source, programs = spec.source, programs_of(spec)
    layers, lost, changed = layer_errors(spec, teacher, adapters)
    first, exact = run_student(spec, source.tensors, advance)
    spec.probed[STUDENT] = first
    base = probe_of(spec, teacher, advance).forward()
    merged, whole = run_student(spec, MergedTensors(teacher, adapters), advance)
    partly, some = merged, whole
    if not all(programs.values()):
        partly, some = run_student(spec, MergedTensors(teacher, _InDiffusers(adapters)), advance)
    change = norm(first - base) or 1.0
    errors = {True: relative_error(whole, exact), False: relative_error(some, exact)}
    return Losses(
        "lora",
        relative_error(merged, first),
        layers,
        {
            "energy": 1 - lost / changed if changed else 1.0,
            "change_lost": norm(merged - first) / change,
            "forward_error_in_diffusers": relative_error(partly, first),
            "change_lost_in_diffusers": norm(partly - first) / change,
            "steps": len(source.schedule),
            ROLLOUT: {name: errors[applied] for name, applied in programs.items()},
        },
    )


def has_factors(name: str, shape: tuple[int, ...]) -> bool:
    """True if a weight is that of a linear layer or a convolution."""
    return name.endswith(".weight") and len(shape) in (2, 4)


def change_of(spec: ExportSpec, teacher: Tensors, name: str) -> Tensor:
    """The change of a weight by training, float32; exact for adapters, with no rounded sum.

    Raises:
        UserError: a value of the student is not finite.
    """
    source = spec.source
    if source.adapters is not None:
        shape = source.tensors.shapes[name]
        delta = source.adapters.delta(name, shape)
        return torch.zeros(shape) if delta is None else delta
    return read_finite(source.tensors, name).float() - teacher.read(name).float()


def layer_errors(
    spec: ExportSpec,
    teacher: Tensors,
    adapters: StoredAdapters,
    advance: Advance = lambda n: None,
) -> tuple[dict[str, dict[str, float]], float, float]:
    """Each layer's losses, and the squared sizes of what is lost and of what training changed.

    Args:
        spec: The export.
        teacher: The weights that the adapters are for.
        adapters: The written file.
        advance: Called after each weight.
    """
    layers: dict[str, dict[str, float]] = {}
    lost = changed = 0.0
    for name, shape in spec.source.tensors.shapes.items():
        advance(1)
        exact = change_of(spec, teacher, name)
        got = adapters.delta(name, shape)
        off, size = norm(exact if got is None else got - exact), norm(exact)
        lost, changed = lost + off**2, changed + size**2
        if has_factors(name, shape) and (size or off or spec.source.adapters is None):
            error = off / size if size else 0.0
            layer = name.removesuffix(".weight")
            rank = {"rank": adapters.file.rank(layer)} if layer in adapters.file.layers else {}
            layers[name] = {**rank, "energy": 1 - error**2, "relative_error": error}
    return layers, lost, changed


def forward_error(
    spec: ExportSpec, teacher: Tensors, adapters: Adapters, advance: Advance
) -> float:
    """The error of one evaluation of the network with all that a file has."""
    if STUDENT not in spec.probed:
        spec.probed[STUDENT] = probe_of(spec, spec.source.tensors, advance).forward()
    merged = probe_of(spec, MergedTensors(teacher, adapters), advance).forward()
    return relative_error(merged, spec.probed[STUDENT])


def run_student(spec: ExportSpec, tensors: Tensors, advance: Advance) -> tuple[Tensor, Tensor]:
    """One evaluation of a network, and the latents after the student's steps."""
    probe = probe_of(spec, tensors, advance, keep=spec.keeps_network)
    try:
        return probe.forward(), probe.rollout(spec.source.schedule)
    finally:
        probe.release()


def probe_of(spec: ExportSpec, tensors: Tensors, advance: Advance, keep: bool = False) -> Probe:
    """A network with a student's weights, or others of the same shapes, to evaluate.

    Args:
        spec: The export.
        tensors: The weights.
        advance: Called after each weight that is read.
        keep: True for several evaluations, where the memory holds the network.
    """

    def read(name: str) -> Tensor:
        advance(1)
        return tensors.read(name).float()

    return Probe(spec.source.model, lambda name: torch.float32, read, keep)
