"""Reads exports back: against their source right after writing, or alone, offline, at any time."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

from lightx2v_sgmd.files.manifest import FILE_NAME, Manifest, changed_files, read_manifest
from lightx2v_sgmd.files.tensors.safetensors_files import PICKLE_SUFFIXES, read_headers, schedule_of
from lightx2v_sgmd.system.errors import UserError
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.registry import format_named

_DANGEROUS: Final = (*PICKLE_SUFFIXES, ".safetensors", ".py", ".index.json")
"""Endings of files that a program would load or run if they lay among the weights."""


class ExportError(RuntimeError):
    """Raised for an export that differs from its source; the message says how."""


def differences(
    spec: ExportSpec, folder: Path, losses: Losses | None, advance: Advance = lambda n: None
) -> list[str]:
    """Lists what in an export differs from its source; the list is empty if nothing does.

    Compared are the hashes, the schedule in all its places, the keys, shapes, types and values of
    the weights, and one forward pass of the real network with the export's weights against the
    same with the source's: bit by bit, or within the error that the export reports.

    Args:
        spec: The export that was asked for.
        folder: The export.
        losses: The losses that the export reports.
        advance: Called after each weight that is compared.
    """
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return [str(error)]
    if manifest is None:
        return [f"{FILE_NAME} is missing"]
    problems = changed_files(folder, manifest.sha256)
    if manifest.schedule != spec.source.schedule:
        problems.append(f"the schedule in {FILE_NAME} is not the source's")
    return problems + spec.format.problems(spec, folder, losses, advance)


def verify(folder: str | Path) -> list[str]:
    """Lists what in an exported folder differs from its manifest; empty if nothing does.

    Needs nothing but the folder: no source, no teacher, no network.

    Raises:
        UserError: the folder is no export.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that `lightx2v-sgmd export` wrote")
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder}: has no {FILE_NAME}; name a folder that `lightx2v-sgmd export` wrote"
        )
    outside = [name for name in manifest.sha256 if not _inside(folder, name)]
    if outside:
        return [f"{name} in {FILE_NAME} points out of the folder" for name in outside]
    problems = changed_files(folder, manifest.sha256)
    return problems + _strangers(folder, manifest) + _weights_problems(folder, manifest)


def _inside(folder: Path, name: str) -> bool:
    """True if a listed name stays below the folder, links followed."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name:
        return False
    return (folder / name).resolve().is_relative_to(folder.resolve())


def _strangers(folder: Path, manifest: Manifest) -> list[str]:
    """Files that a program would load though the manifest does not know them."""
    known = set(manifest.sha256)
    files = sorted(path for path in folder.rglob("*") if path.name.endswith(_DANGEROUS))
    names = [path.relative_to(folder) for path in files]
    visible = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return [
        f"{name.as_posix()} is not in {FILE_NAME}"
        for name in visible
        if name.as_posix() not in known
    ]


def _weights_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Lists faults of the weights' headers, and a schedule that is not the manifest's."""
    written_in = format_named(manifest.format)
    try:
        carried = [
            schedule_of(read_headers(written_in.weight_files(folder, expert)).metadata)
            for expert in range(written_in.expert_count(folder))
        ]
    except UserError as error:
        return [str(error)]
    if any(schedule != manifest.schedule for schedule in carried):
        return [f"the weights carry another schedule than {FILE_NAME}"]
    return []
