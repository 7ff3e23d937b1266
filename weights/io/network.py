"""Writes and reads back the network of a full export, whatever its layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.files.tensors.dtypes import FILE_NAMES
from lightx2v_sgmd.files.tensors.safetensors_files import (
    Header,
    read_headers,
    schedule_metadata,
    schedule_of,
)
from lightx2v_sgmd.files.tensors.safetensors_writer import ShardWriter, split
from lightx2v_sgmd.system.errors import UserError, first_line
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.layout import Layout, encoded, read_finite
from weights.io.heap import HeapTrimmer
from weights.io.model_spec import model_spec
from weights.io.probe import probe
from weights.io.quantize import is_quantized, relative_error
from weights.io.tensors import read_tensor

SLACK = 1 + 1e-3
"""The factor by which a recomputed error may exceed the reported one: sums change in order."""


def nbytes(spec: ExportSpec) -> int:
    """The size of the network's files."""
    parts = spec.layout.all_parts(spec.source.tensors.shapes)
    return sum(part.nbytes for part in parts) + 1000 * len(parts)


def write_network(spec: ExportSpec, folder: Path, stem: str, advance: Advance) -> Losses | None:
    """Writes the network's files, one tensor in memory at a time.

    Args:
        spec: The export to write.
        folder: The folder for the files.
        stem: The start of their names.
        advance: Called after each weight that is written.

    Returns:
        What 8-bit storage lost; None at any other precision.
    """
    source, layout = spec.source, spec.layout
    parts = layout.all_parts(source.tensors.shapes)
    shards = split(parts, stem, spec.max_shard_size)
    index = f"{stem}.safetensors.index.json"
    metadata = schedule_metadata(source.schedule) | layout.metadata(source.tensors.shapes)
    metadata |= model_spec(spec)
    writer = ShardWriter(folder, shards, parts, metadata, index)
    layers: dict[str, dict[str, float]] = {}
    trimmer = HeapTrimmer()
    try:
        for name in source.tensors.shapes:
            exact = read_finite(source.tensors, name)
            content = encoded(layout, name, exact)
            writer.write(content)
            if layout.scales is not None and is_quantized(name):
                error = relative_error(layout.decode(name, content), exact)
                layers[name] = {"relative_error": error}
            trimmer.trim()
            advance(1)
        writer.write(layout.markers)
        spec.hashed.update(writer.finish())
    finally:
        writer.close()
    if layout.scales is None:
        return None
    header = read_headers(spec.format.weight_files(folder, spec.expert))
    forward_error = relative_error(
        probe(
            source.model,
            layout.stored_dtype,
            lambda name: layout.decode(name, _parts(header, name, spec)),
        ),
        probe(source.model, layout.stored_dtype, lambda name: _exact(spec, name)),
    )
    return Losses(
        "fp8",
        forward_error,
        layers,
        {"scales": "channel" if layout.scales.per_channel else "matrix"},
    )


def _parts(header: Header, name: str, spec: ExportSpec) -> dict[str, Tensor]:
    """The tensors that the export's files hold for a weight."""
    parts = spec.layout.parts(name, spec.source.tensors.shapes[name])
    return {part.name: read_tensor(header.tensors[part.name]) for part in parts}


def _exact(spec: ExportSpec, name: str) -> Tensor:
    """A weight of the source at the precision of the export, but never in 8 bits."""
    return spec.source.tensors.read(name).to(spec.layout.stored_dtype(name))


def network_problems(
    spec: ExportSpec, folder: Path, config: dict[str, Any], losses: Losses | None, advance: Advance
) -> list[str]:
    """Lists what in the network's files differs from the source.

    Keys, shapes, types and the schedule are compared first, then every tensor, bit by bit, with
    what the source gives now, and one forward pass: bit by bit too, or against the reported error
    where 8 bits lose something.

    Args:
        spec: The export that was written.
        folder: The export.
        config: The network's configuration as the export has it.
        losses: The losses that the export reports.
        advance: Called after each weight that is compared.
    """
    source, layout = spec.source, spec.layout
    try:
        header = read_headers(spec.format.weight_files(folder, spec.expert))
    except UserError as error:
        return [str(error)]
    problems = _header_problems(spec, header)
    if problems:
        return problems
    if schedule_of(header.metadata) != source.schedule:
        problems.append("the weights carry another schedule than the source")
    seen: set[str] = set()

    def compared(name: str) -> Tensor:
        parts = _parts(header, name, spec)
        if name not in seen:
            seen.add(name)
            problems.extend(_value_problems(spec, name, parts))
            advance(1)
        return layout.decode(name, parts)

    exported = source.model.with_transformer_config(config)
    got = _forward(exported, layout, compared, problems)
    for name in source.tensors.shapes:
        if name not in seen:
            compared(name)
    for name, marker in layout.markers.items():
        if not torch.equal(read_tensor(header.tensors[name]).float(), marker.float()):
            problems.append(f"{name} has other values")
    if got is None or problems:
        return problems
    expected = probe(source.model, layout.stored_dtype, lambda name: _exact(spec, name))
    if losses is None:
        return [] if torch.equal(got, expected) else [_off(got, expected)]
    if relative_error(got, expected) <= losses.forward_error * SLACK:
        return []
    return [f"{_off(got, expected)}, but {losses.forward_error:.2%} is reported"]


def _header_problems(spec: ExportSpec, header: Header) -> list[str]:
    expected = {part.name: part for part in spec.layout.all_parts(spec.source.tensors.shapes)}
    stored = header.tensors
    problems = [f"{name} is missing" for name in expected if name not in stored]
    problems += [f"{name} is unexpected" for name in stored if name not in expected]
    for name, part in expected.items():
        if name not in stored:
            continue
        if stored[name].shape != part.shape:
            problems.append(f"{name} is {list(stored[name].shape)}, not {list(part.shape)}")
        if stored[name].dtype != FILE_NAMES[part.dtype]:
            problems.append(f"{name} is {stored[name].dtype}, not {FILE_NAMES[part.dtype]}")
    return problems


def _value_problems(spec: ExportSpec, name: str, parts: Mapping[str, Tensor]) -> list[str]:
    expected = encoded(spec.layout, name, read_finite(spec.source.tensors, name))
    return [
        f"{stored} has other values"
        for stored, got in parts.items()
        if not torch.equal(_bytes(got), _bytes(expected[stored]))
    ]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def _forward(
    model: Model, layout: Layout, read: Callable[[str], Tensor], problems: list[str]
) -> Tensor | None:
    try:
        return probe(model, layout.stored_dtype, read)
    except (UserError, RuntimeError, ValueError, TypeError, KeyError) as error:
        problems.append(f"the network does not run: {first_line(error)}")
        return None


def _off(got: Tensor, expected: Tensor) -> str:
    return f"a forward pass is off by {relative_error(got, expected):.2g} of its size"
