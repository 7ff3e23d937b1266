"""Export: a student in, a folder out that appears whole and verified, or not at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from lightx2v_sgmd.files.run_files import CHECKPOINTS, is_checkpoint
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.outputs import check_new_folder, locked_file, refuse_overlap, resolved, sync_tree
from lightx2v_sgmd.system.console import note, progress
from lightx2v_sgmd.system.disk import free_bytes
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.host_memory import refuse_too_large
from weights.card import model_card
from weights.export_spec import BASE, RELATIVE_TO, ExportSpec, Losses
from weights.formats.base import Format
from weights.formats.lora import check_rank
from weights.formats.programs import refusal
from weights.formats.registry import FORMATS, format_for, format_named
from weights.hub import check_repository
from weights.hub import push as push_export
from weights.io.lora_names import PORTABLE
from weights.io.quantize import is_8_bit
from weights.io.source import ExportSource
from weights.manifest import manifest_for
from weights.opening import open_source
from weights.public_names import public_job
from weights.publishing import (
    DiffersError,
    appearing_export,
    finish_replacing,
    replaceable,
)
from weights.verify import differences

SHARD_SIZE = "5GB"
_COPIES: Final = 8
"""Float32 copies of its largest tensor that an export holds at most: while it is factorised."""


def export(
    source: str | Path,
    format: str,
    out: str | Path,
    *,
    dtype: str | None = None,
    ema: bool = True,
    rank: int | None = None,
    energy: float | None = None,
    names: str | None = None,
    only: str | None = None,
    relative_to: str | None = None,
    max_shard_size: str = SHARD_SIZE,
    overwrite: bool = False,
    push: str | None = None,
    public: bool = False,
    quiet: bool = False,
) -> Path:
    """Writes a student as weights for other programs, then reads back and checks what it wrote.

    Args:
        source: A run folder (its newest whole checkpoint is taken), a checkpoint folder, or a
            folder that ``export`` wrote.
        format: ``diffusers``, ``wan``, ``comfyui`` or ``lora``.
        out: A folder that does not exist yet, or is empty.
        dtype: ``bf16``, ``fp16``, ``fp32`` or ``fp8`` (wan and comfyui). None: bf16 of a run, and
            of exported weights the precision that they have.
        ema: Export the EMA weights if the run has them; False exports the last step.
        rank: The rank of extracted adapters (lora); 64 by default.
        energy: Instead of a rank: the share in (0, 1] of each layer's change that they hold.
        names: The names of adapters (lora): ``portable`` (the default: for ComfyUI, LightX2V,
            diffusers, and a copy for PEFT), ``diffusers``, ``peft``, ``musubi``,
            ``lightx2v_train``.
        only: ``blocks`` keeps adapters of the linear layers of blocks alone (lora).
        relative_to: The weights that adapters are added to (lora), for a student of a fine-tune
            (``teacher.loras``): ``base``, the default, makes them hold the fine-tune too;
            ``teacher`` makes them go on top of it.
        max_shard_size: The largest weights file of diffusers and wan, such as ``5GB``.
        overwrite: Replaces an export of ours, whole and unchanged, with no other file in it, and
            files of the same names in the pushed repository.
        push: ``ORG/NAME`` of the Hugging Face Hub, to which the finished export is uploaded.
        public: Makes the pushed repository public; it is private otherwise.
        quiet: No progress bar.

    Returns:
        ``out``.

    Raises:
        UserError: the source or the output will not do, the disk is full, or the hub does not take
            the export, which stays in ``out`` then.
        ExportError: what was written is not what it should be. It stays beside ``out``, in a
            folder that the message names; ``out`` is as it was.
    """
    out = Path(out)
    target_format = format_named(format)
    _check_options(target_format, dtype, rank, energy, names or only or relative_to)
    if relative_to is not None and relative_to not in RELATIVE_TO:
        raise UserError(f"relative-to: {relative_to!r} is unknown; use {' or '.join(RELATIVE_TO)}")
    if push is not None:
        check_repository(push, not public, overwrite)
    elif public:
        raise UserError("public: belongs to --push; leave it out, or add --push ORG/NAME")
    final = resolved(out)
    check_new_folder(final)
    refuse_overlap(final, {"the source": Path(source)})
    check_writable(final, folder=True)
    with locked_file(final, "export", quiet) as lock:
        finish_replacing(final)
        before = replaceable(final, overwrite)
        opened = open_source(
            source, ema, lambda damage: note(f"skipped: {damage}", quiet), relative_to or BASE
        )
        if opened.second is not None and not target_format.holds_experts:
            able = " or ".join(other.name for other in FORMATS.values() if other.holds_experts)
            raise UserError(
                f"format: {target_format.name} holds one network, and {opened.path} has two "
                f"experts; use --format {able}"
            )
        refuse_overlap(final, _sources(opened))
        target_format = format_for(target_format, opened.model)
        precision = _dtype(opened, target_format, dtype)
        spelling = names or target_format.usual_names
        limits = (max_shard_size, rank, energy, spelling, only)
        if format not in opened.model.formats:
            raise UserError(
                f"format: students of {opened.model.family} cannot be written as {format}; use "
                f"{' or '.join(opened.model.formats)}"
            )
        spec = ExportSpec(opened, target_format, precision, out, *limits)
        if ema and not opened.ema:
            reason = "the run kept no moving average (train.ema is 0)"
            note(f"{reason}: exporting its last weights", quiet)
        if is_8_bit(opened.about.dtype):
            note(f"{opened.path}: holds 8-bit weights; what they lost stays lost", quiet)
        target_format.check(spec)
        portable = not target_format.holds_adapters or spec.names == PORTABLE.name
        for program in target_format.programs if portable else ():
            refused = refusal(program, opened.model.transformer_config)
            if refused is not None:
                note(f"{refused}; lightx2v-sgmd and diffusers run it", quiet)
        _check_space(final, target_format.nbytes(spec))
        _check_memory(spec)
        count = target_format.count(spec)
        if target_format.holds_adapters:
            note(
                "writes the adapters, then runs the network through the student's steps with and "
                "without them, to measure what they lose",
                quiet,
            )
        with appearing_export(final, opened.path, before, lock) as folder:
            with progress(count, "writing", quiet) as bar:
                losses = target_format.write(spec, folder, bar.advance)
            _finish(spec, folder, losses)
            sync_tree(folder)
            with progress(target_format.verified_count(spec), "verifying", quiet) as bar:
                problems = differences(spec, folder, losses, bar.advance)
            if problems:
                raise DiffersError(problems)
        if losses is not None:
            note(losses.summary, quiet)
    if push is not None:
        try:
            push_export(out, push, private=not public, replace=overwrite, quiet=quiet)
        except UserError as error:
            options = " --public" * public + " --overwrite" * overwrite
            command = f"lightx2v-sgmd weights push {out} {push}{options}"
            again = f"the export is whole in {out}: `{command}`"
            raise UserError(f"{error}; {again}") from error
    return out


def _check_options(
    format: Format,
    dtype: str | None,
    rank: int | None,
    energy: float | None,
    adapters: str | None,
) -> None:
    """Raises ``UserError`` for options that the format does not take."""
    if dtype is not None and dtype not in format.dtypes:
        others = [other.name for other in FORMATS.values() if dtype in other.dtypes]
        remedy = f", or --format {' or '.join(others)}" if others else ""
        raise UserError(
            f"dtype: --format {format.name} does not support {dtype!r}; "
            f"use {_alternatives(format.dtypes)}{remedy}"
        )
    given = (rank, energy, adapters)
    if not format.holds_adapters and any(value is not None for value in given):
        taking = " or ".join(other.name for other in FORMATS.values() if other.holds_adapters)
        raise UserError(
            f"rank, energy, names, only, relative-to: belong to --format {taking}; leave them out"
        )
    check_rank(rank, energy)


def _alternatives(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _dtype(source: ExportSource, format: Format, asked: str | None) -> str:
    """The precision: as asked, or of exported weights their own, or bf16."""
    if asked is not None:
        return asked
    exported = not is_checkpoint(source.path)
    own = source.about.dtype
    return own if exported and source.adapters is None and own in format.dtypes else "bf16"


def _finish(spec: ExportSpec, folder: Path, losses: Losses | None) -> None:
    """Writes what every export has beside its weights, the manifest last."""
    if losses is not None:
        losses.write(folder)
    if spec.source.job_file is not None:
        job = public_job(spec.source.job_file)
        (folder / "job.yaml").write_text(job, encoding="utf-8")
    card = model_card(spec, losses)
    (folder / "README.md").write_text(card, encoding="utf-8")
    manifest_for(spec, folder).write(folder)


def _sources(source: ExportSource) -> dict[str, Path | None]:
    """The paths that an export reads, so that it does not write there."""
    root = Path(source.model.source.root)
    teacher = Path(source.about.base)
    sources = {"the source": source.path, "the model": root, "the teacher": teacher}
    if source.path.parent.name == CHECKPOINTS:
        sources["the run"] = source.path.parent.parent
    return {
        name: path if path.is_absolute() or path.exists() else None
        for name, path in sources.items()
    }


def _check_memory(spec: ExportSpec) -> None:
    """Refuses an export that the main memory does not hold.

    Tensors are read, converted and verified one by one; adapters are written at once.
    """
    shapes = spec.source.tensors.shapes.values()
    needed = _COPIES * 4 * max(math.prod(shape) for shape in shapes)
    if spec.format.holds_adapters:
        needed += spec.format.nbytes(spec)
    refuse_too_large(needed / 2**30, f"{spec.source.path}: exporting it", "close other programs")


def _check_space(out: Path, needed: int) -> None:
    free = free_bytes(out)
    if free < needed:
        raise UserError(
            f"{out}: needs {needed / 2**30:.2f} GiB and the disk has {free / 2**30:.2f} GiB left; "
            "make room or choose another disk"
        )
