"""What an export says about itself, gathered from its checkpoint."""

from __future__ import annotations

from pathlib import Path

from lightx2v_sgmd.manifest import Manifest, Video, sha256_file
from lightx2v_sgmd.video import frame_rate
from weights.load import Source


def manifest_for(source: Source, folder: Path, dtype: str) -> Manifest:
    """The manifest of an export whose weights and configurations are in ``folder``."""
    job = source.job
    return Manifest(
        method={"name": job.method.name, "options": job.method_options},
        teacher=job.teacher.path,
        schedule=source.schedule,
        guidance_scale=job.teacher.guidance_scale,
        video=Video(
            job.video.height, job.video.width, job.video.num_frames, frame_rate(job.teacher.path)
        ),
        step=source.step,
        ema=source.ema,
        dtype=dtype,
        sha256=hashes(folder),
    )


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below ``folder``, by its path there with forward slashes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
