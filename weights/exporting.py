"""Export: a checkpoint in, a folder out that appears whole and verified, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from lightx2v_sgmd.console import note, progress
from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.video import check_writable
from weights import diffusers_format
from weights.load import open_source
from weights.verify import ExportError, differences

FORMATS: Final = ("diffusers",)


def export(
    source: str | Path,
    format: str,
    out: str | Path,
    *,
    dtype: str = "bf16",
    ema: bool = True,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Writes the student of a run as weights for other programs, then verifies what it wrote.

    Args:
        source: A run folder (its newest whole checkpoint is taken) or a checkpoint folder.
        format: ``diffusers``: a folder that ``WanPipeline.from_pretrained`` runs in four steps.
        out: A folder that does not exist yet, or is empty.
        dtype: ``bf16``, ``fp16`` or ``fp32``; what diffusers keeps in float32 stays float32.
        ema: Takes the moving average if the run kept one, else the last weights.
        overwrite: Replaces a folder that is not empty.
        quiet: No progress bar.

    Returns:
        ``out``.

    Raises:
        UserError: the source or the output will not do, or the disk is full.
        ExportError: what was written is not what it should be; nothing is left at ``out``.
    """
    out = Path(out)
    if format not in FORMATS:
        raise UserError(f"format: {format!r} is unknown; use {', '.join(FORMATS)}")
    if dtype not in diffusers_format.DTYPES:
        raise UserError(f"dtype: {dtype!r} is unknown; use {', '.join(diffusers_format.DTYPES)}")
    check_writable(out, folder=True)
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"{out}: is not empty; choose another folder, or add --overwrite")
    chosen = open_source(source, ema, lambda damage: note(f"passed over: {damage}", quiet))
    if ema and not chosen.ema:
        note("the run kept no moving average (train.ema is 0): exporting its last weights", quiet)
    _check_space(out, diffusers_format.size_bytes(chosen, dtype))
    with _appearing(out) as folder:
        with progress(len(chosen.header.tensors), "writing", quiet) as bar:
            diffusers_format.write(chosen, folder, dtype, bar.advance)
        _sync(folder)
        with progress(len(chosen.header.tensors), "verifying", quiet) as bar:
            problems = differences(chosen, folder, dtype, bar.advance)
        if problems:
            shown = "; ".join(problems[:8])
            raise ExportError(f"{out}: not exported, what was written differs: {shown}")
    return out


def _check_space(out: Path, needed: int) -> None:
    nearest = out
    while not nearest.exists():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise UserError(
            f"{out}: needs {needed / 2**30:.2f} GiB and the disk has {free / 2**30:.2f} GiB left; "
            "make room or choose another disk"
        )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Gives a new folder beside ``out`` that becomes ``out`` if all goes well, else is removed."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.new")
    replaced = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            os.replace(out, replaced)
        try:
            os.replace(temporary, out)
        except OSError:
            if replaced.exists():
                os.replace(replaced, out)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{out}: cannot be written: {reason}; make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Makes sure that what was written outlives a power cut, so that the rename means complete."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
