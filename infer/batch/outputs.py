"""The output files of a call, and everything about them that can be refused before work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infer.batch.requests import Request
from infer.batch.sidecars import problem, sidecar
from infer.options import GenerateOptions, Options
from lightx2v_sgmd.families.sources.model_folder import model_folder
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.outputs import (
    OutputLock,
    locked_file,
    locked_folder,
    refuse_overlap,
    resolved,
)
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.errors import UserError


def output_files(
    requests: Sequence[Request], out: Path, alone: bool, suffix: str = ".mp4"
) -> list[Path]:
    """The videos or images to write, each of which can be written.

    Args:
        requests: One for each video.
        out: A file or a folder.
        alone: True if there is one prompt, which may go to a file.
        suffix: ``.mp4`` for videos, ``.png`` for images.

    Raises:
        UserError: says what is in the way.
    """
    if alone and not out.is_dir():
        if out.suffix.lower() not in ("", suffix):
            what = "videos" if suffix == ".mp4" else "this model's images"
            raise UserError(f"{out}: {what} are written as {suffix}; end --out with {suffix}")
        file = out.with_suffix(suffix)
        check_writable(file)
        return [file]
    if out.suffix.lower() == suffix:
        raise UserError(f"{out}: is one file for {len(requests)} prompts; give a folder as --out")
    check_writable(out, folder=True)
    files = [out / f"{request.name}{suffix}" for request in requests]
    for file in files:
        if file.is_dir():
            raise UserError(f"{file}: is a folder, not a file; move it or choose another output")
    check_own(files)
    return files


def check_own(files: Sequence[Path]) -> None:
    """Raises if something that is not ours stands where a video or its sidecar would go.

    Raises:
        UserError: names the first of them.
    """
    reasons = [reason for file in files if (reason := problem(file)) is not None]
    if reasons:
        more = f" (and {len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
        raise UserError(
            f"{reasons[0]}{more}; it is not replaced: choose another name or output, or move it"
        )


def check_profile(profile: Path, files: Sequence[Path]) -> None:
    """Raises unless a trace can be written and replaces nothing.

    Raises:
        UserError: the file is there, or is that of a video or its sidecar.
    """
    check_writable(profile)
    if os.path.lexists(profile):
        raise UserError(f"--profile: {profile} is there already; name a new file")
    taken = {resolved(path) for file in files for path in (file, sidecar(file))}
    if resolved(profile, "--profile") in taken:
        raise UserError(f"--profile: {profile} is where a video or its sidecar goes; name another")


def refuse_sources(
    files: Sequence[Path],
    weights: str | Path,
    options: Options,
    prompts: str | Sequence[str] | Path,
    out: Path,
) -> None:
    """Raises if a video would go where something is read.

    Raises:
        UserError: the output is, holds or lies in the weights, or is a file that is read.
    """
    base = None if options.base is None else Path(options.base)
    folders = {"--weights": model_folder(weights), "--base": base}
    read = {f"--lora {number}": lora.path for number, lora in enumerate(options.loras, start=1)}
    if isinstance(prompts, Path):
        read["--prompts"] = prompts
    if isinstance(options, GenerateOptions) and options.image is not None:
        read["--image"] = options.image
    refuse_overlap(resolved(files[0] if _alone(files, out) else out), folders)
    for file in files:
        for path in (file, sidecar(file)):
            if os.path.lexists(path):
                refuse_overlap(resolved(path), read)


def _alone(files: Sequence[Path], out: Path) -> bool:
    """True if ``out`` is a file, not the folder of files."""
    return files[0].parent != out


@contextmanager
def output_lock(
    files: Sequence[Path], out: Path, ranks: Ranks, quiet: bool
) -> Iterator[OutputLock | None]:
    """The first process locks the output, for all; the others have None.

    Raises:
        UserError: another process writes there; all processes have it.
    """
    context = (
        locked_file(resolved(files[0]), "generate", quiet, [sidecar(files[0]).name])
        if _alone(files, out)
        else locked_folder(resolved(out), "generate", quiet)
    )
    taken: list[OutputLock] = []
    ranks.once(lambda: taken.append(context.__enter__()))
    try:
        yield taken[0] if taken else None
    finally:
        if taken:
            context.__exit__(None, None, None)
