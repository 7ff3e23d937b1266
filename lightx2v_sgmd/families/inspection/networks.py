"""Inspects a network's weights: who wrote them, their size, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.inspection.facts import (
    Inspection,
    add_schedule_fact,
    some_of,
    types_text,
)
from lightx2v_sgmd.families.inspection.network_size import (
    config_from,
    shapes_of,
    size_of,
)
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.variants import variant_of
from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.interpolants import FlowMatching
from lightx2v_sgmd.system.errors import shortened


def network_name(expert: str) -> str:
    """A network's name in messages, from its expert's name, which is empty for a single one."""
    return f"{expert} expert" if expert else "transformer"


def header_and_shapes(model: Model) -> tuple[Header, Mapping[str, tuple[int, ...]]]:
    """The header of a model's network, and the shapes that its configuration describes."""
    return model.transformer_weights().header, model.transformer_shapes()


def add_other_network_facts(found: Inspection, model: Model) -> None:
    """Adds the facts of a network that is not Wan's, whose configuration is at hand."""
    header, expected = header_and_shapes(model)
    count = sum(prod(info.shape) for info in header.tensors.values())
    found.facts["names"] = "diffusers"
    found.facts["size"] = (
        f"{model.num_blocks} layers of width {model.width}, {count:,} weights ({model.family})"
    )
    found.facts["types"] = types_text(header)
    add_schedule_fact(found, header, isinstance(model.interpolant, FlowMatching))
    add_differences(found, header, expected)


def add_network_facts(
    found: Inspection,
    reader: WholeTensors,
    config: Mapping[str, Any] | None,
    markers: Iterable[str] = (),
) -> None:
    """Adds names, size, types, schedule and what does not fit of a network's weights."""
    stored, header = list(reader.stored_names.values()), reader.header
    prefix = wan_original.transformer_prefix(stored)
    facts = found.facts
    origin = _origin([*stored, *markers], prefix, reader.convention or "")
    if origin is not None:
        facts["program"] = origin
    facts["names"] = _naming(reader, prefix)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    facts["size"] = size_of(shapes)
    facts["types"] = reader.convention or types_text(header)
    add_schedule_fact(found, header)
    config = config or config_from(shapes)
    if config is None:
        found.missing.append("weights of the first block or the embeddings; the file is a part")
        return
    add_differences(found, header, shapes_of(config))


def add_differences(
    found: Inspection,
    header: Header,
    expected: Mapping[str, tuple[int, ...]],
    where: str = "",
) -> None:
    """Adds the weights that a network lacks, has too much, or has in other shapes.

    Args:
        found: The inspection, which is changed.
        header: The network's weights.
        expected: The shapes of the weights that its configuration describes.
        where: Text after the names of the facts: the expert that the network is.
    """
    facts = found.facts
    shapes = {name: info.shape for name, info in header.tensors.items()}
    strange = [name for name in shapes if name not in expected]
    variant = variant_of(strange)
    if variant is not None:
        facts[f"variant{where}"] = f"{variant}, which is not supported"
    elif strange:
        facts[f"unexpected{where}"] = some_of(strange)
    absent = [name for name in expected if name not in shapes]
    if absent:
        found.missing.append(f"{len(absent)} weights{where}: {some_of(absent)}")
    other = [name for name in shapes if name in expected and shapes[name] != expected[name]]
    if other:
        facts[f"other shapes than the configuration's{where}"] = some_of(other)


def _origin(stored: list[str], prefix: str, convention: str) -> str | None:
    """The program that weights look to be from; None where only the names of layers tell."""
    if not {"generator", "generator_ema"}.isdisjoint(prefix.split(".")):
        return "a trainer of few-step students (CausVid, Self-Forcing and their kin)"
    if prefix.split(".")[0] in ("net", "net_ema"):
        return "rCM or another trainer that saves `net`"
    if any(name.endswith(".comfy_quant") for name in stored):
        return "ComfyUI of December 2025 or newer"
    if ".scale_weight" in convention:
        return "ComfyUI before December 2025"
    if ".weight_scale" in convention:
        return "LightX2V, or ComfyUI"
    return "ComfyUI" if prefix.endswith("diffusion_model.") else None


def _naming(reader: WholeTensors, prefix: str) -> str:
    ours = any("condition_embedder." in name for name in reader.stored_names.values())
    layout = "diffusers" if ours else "original (Wan2.1, LightX2V)"
    if prefix.endswith("diffusion_model."):
        return f"{layout}, behind ComfyUI's prefix {prefix!r}"
    return f"{layout}, behind {shortened(prefix)!r}" if prefix else layout
