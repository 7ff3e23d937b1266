"""Makes the manifest of an export from its source and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lightx2v_sgmd.files.manifest import Manifest
from lightx2v_sgmd.outputs import sha256_files
from weights.export_spec import ExportSpec
from weights.public_names import public_options


def manifest_for(spec: ExportSpec, folder: Path) -> Manifest:
    """The manifest of an export whose other files are all in ``folder``."""
    about = spec.source.about
    return replace(
        about,
        method={**about.method, "options": public_options(about.method["options"])},
        dtype=spec.dtype,
        format=spec.format.name,
        sha256=hashes(folder, spec.hashed),
    )


def hashes(folder: Path, known: Mapping[Path, str]) -> dict[str, str]:
    """sha256 of every file below ``folder``, by its path there with forward slashes.

    Args:
        folder: The export.
        known: The hashes that are known already, by path.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rest = [path for path in files if path not in known]
    digests = {**known, **dict(zip(rest, sha256_files(rest), strict=True))}
    return {path.relative_to(folder).as_posix(): digests[path] for path in files}
