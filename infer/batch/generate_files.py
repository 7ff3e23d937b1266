"""Prompts in, mp4 files out: what can be refused is refused before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infer.batch.ledger import GenerateCall, Ledger, Outcome
from infer.batch.making import Making
from infer.batch.outputs import check_profile, output_files, output_lock, refuse_sources
from infer.batch.profiling import profiled
from infer.batch.provenance import Provenance
from infer.batch.requests import make_requests, settle
from infer.checks import check_student, output_suffix
from infer.engine import Student
from infer.engine_plan import make_plan
from infer.multi_gpu import check_ranks, processes
from infer.options import GenerateOptions
from infer.stopping import Cancel
from lightx2v_sgmd.files.prompts import note_unread
from lightx2v_sgmd.outputs import resolved
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import required
from lightx2v_sgmd.system.torch_faults import slow_conv3d


class SomeFailed(RuntimeError):
    """Some videos could not be made; the others are there."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        name, reason = outcome.failed[0]
        super().__init__(f"{len(outcome.failed)} videos failed; the first, {name}: {reason}")


def generate(
    weights: str | Path,
    prompts: str | Sequence[str] | Path,
    out: str | Path,
    options: GenerateOptions | None = None,
    *,
    quiet: bool = False,
) -> list[Path]:
    """Makes videos and writes them as mp4; returns the files, as ``generate_files`` does.

    Raises:
        UserError: see ``generate_files``.
        SomeFailed: some videos could not be made.
    """
    outcome = generate_files(weights, prompts, out, options, quiet=quiet)
    if outcome.failed:
        raise SomeFailed(outcome)
    return outcome.files


def generate_files(
    weights: str | Path,
    prompts: str | Sequence[str] | Path,
    out: str | Path,
    options: GenerateOptions | None = None,
    *,
    cancel: Cancel | None = None,
    quiet: bool = False,
    images: Sequence[Path | None] = (),
) -> Outcome:
    """Makes videos and writes them as mp4, or images and writes them as PNG.

    Each video gets a sidecar (``.json``) that says what it was made from, and a video whose sidecar
    fits is not made again. Only videos and sidecars of ours are replaced. A video that fails does
    not stop the others.

    Args:
        weights: As for ``load_student``.
        prompts: One prompt, several, or a ``Path`` to a file of them (see ``make_requests``).
        out: A file for a single prompt (``.mp4`` is added if it has no suffix), else a folder that
            gets ``0000_<words of the prompt>.mp4`` and so on.
        options: Sizes, seeds, precision, memory and so on; see ``infer.GenerateOptions``.
        cancel: Asked between steps and between chunks of frames whether to stop.
        quiet: Show no progress bar.
        images: The image that each of several prompts starts from; empty if none has one of its
            own. A file of prompts names its images itself.

    Raises:
        UserError: what ``load_student`` and ``Student.generate`` refuse, prompts that cannot be
            read, or an output that cannot be written (all found before anything is loaded).
        Cancelled: ``cancel`` said so; what was finished stays.
    """
    call = _prepared(weights, prompts, Path(out), options or GenerateOptions(), quiet, images)
    if call.options.ray is None:
        return _generate_here(call, cancel, quiet)
    from infer.cluster.generating import generate_on_machines

    return generate_on_machines(call, cancel, quiet)


def _prepared(
    weights: str | Path,
    prompts: str | Sequence[str] | Path,
    out: Path,
    options: GenerateOptions,
    quiet: bool,
    images: Sequence[Path | None],
) -> GenerateCall:
    """Everything that can be refused without the device."""
    required("imageio_ffmpeg")
    if options.fps is not None and not 0.1 <= options.fps <= 1000:
        raise UserError(f"fps: {options.fps:g} is out of range; use 0.1 to 1000 frames per second")
    requests = make_requests(prompts, options.seed, images)
    if isinstance(prompts, Path):
        note_unread(prompts, quiet, keys=False)  # others are refused
    resolved(out)
    suffix = output_suffix(weights, options.base)
    files = output_files(requests, out, alone=isinstance(prompts, str), suffix=suffix)
    if options.profile is not None:
        check_profile(options.profile, files)
        if options.ray is not None:
            raise UserError("--profile: follows this process alone; leave out --profile or --ray")
    refuse_sources(files, weights, options, prompts, out)
    checked = check_student(
        weights,
        options.assume_schedule,
        options.loras,
        options.base,
        options.skip_image_layers,
        quiet=quiet,
    )
    size = options.height, options.width, options.num_frames
    requests = settle(requests, checked, *size, options.image)
    return GenerateCall(weights, checked, requests, files, out, options)


def _generate_here(call: GenerateCall, cancel: Cancel | None, quiet: bool) -> Outcome:
    """Makes the videos in this process, or in those that torchrun started."""
    options, checked = call.options, call.checked
    with processes(options.device) as ranks:
        check_ranks(ranks, checked.model.num_heads)
        plan = make_plan(
            checked.model,
            options,
            call.largest,
            options.batch_size or 1,
            ranks,
            checked.teacher_dtype,
        )
        provenance = Provenance(checked, options, plan.dtype, plan.text_dtype)
        silent = quiet or not ranks.first
        with output_lock(call.files, call.out, ranks, quiet) as lock:
            ledger = Ledger(call, provenance, ranks, lock, silent)
            ledger.outcome.memory_mode = plan.memory_mode.flags()
            if ledger.waiting:
                if plan.fitted:
                    note(f"to fit into the memory: {plan.memory_mode.flags()}", silent)
                if (fault := slow_conv3d(plan.device)) is not None:
                    note(fault, silent)
                making = Making(ledger.fps, ledger, ranks, cancel, silent, ledger.outcome.timings)
                with profiled(options.profile if ranks.first else None):
                    making.go(
                        lambda: Student(checked, plan, ranks, silent),
                        ledger.waiting,
                        options.batch_size,
                        done=ledger.outcome.skipped,
                    )
            return ledger.finish()
