"""Opens what is to be exported: a run, a checkpoint, or weights that were exported before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.experts import loras_of
from lightx2v_sgmd.families.inspection.loras import lora_at
from lightx2v_sgmd.families.teacher import open_own_models, open_teacher, with_defaults
from lightx2v_sgmd.files.checkpoint import find_checkpoint, read_trainer_state
from lightx2v_sgmd.files.expert_files import expert_of_file
from lightx2v_sgmd.files.manifest import (
    FILE_NAME,
    Manifest,
    VideoFacts,
    changed_files,
    read_manifest,
)
from lightx2v_sgmd.files.student_weights import has_average
from lightx2v_sgmd.files.tensors.safetensors_files import read_headers, schedule_of
from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import RECORD, parse_json
from lightx2v_sgmd.untrusted.reading import read_file
from weights.export_spec import BASE
from weights.formats.registry import format_named
from weights.io.adapters import StackedAdapters, TrainedAdapters
from weights.io.source import ExportSource, student_tensors, teacher_of
from weights.lightx2v_checkpoint import is_lightx2v_checkpoint, open_lightx2v_checkpoint


def open_source(
    path: str | Path,
    ema: bool,
    on_damage: Callable[[str], None] | None = None,
    relative_to: str = BASE,
) -> ExportSource:
    """Checks a run folder, a checkpoint folder or an exported folder, and the teacher it names.

    Args:
        path: The folder; also a checkpoint of LightX2V's trainer.
        ema: True to take the EMA weights if the run has them.
        on_damage: Called with a message for each damaged checkpoint that is skipped.
        relative_to: ``base`` for adapters that hold the LoRAs of the teacher too, ``teacher`` for
            adapters that go on top of them.

    Raises:
        UserError: no whole checkpoint, a damaged file, keys that do not fit the teacher's network,
            a schedule that is not the job's, or a teacher that is not there.
    """
    path = Path(path)
    if (path / FILE_NAME).is_file():
        if relative_to != BASE:
            raise UserError(
                f"relative-to: teacher needs a run or a checkpoint, and {path} is an export, which "
                "does not hold its teacher's LoRAs; leave it out, or export the run"
            )
        return _exported(path)
    if is_lightx2v_checkpoint(path):
        return open_lightx2v_checkpoint(path)
    kind = lora_at(path)
    if kind is not None:
        raise UserError(
            f"{path}: is {kind}, and no run, checkpoint or export; it runs beside its base model: "
            f"`lightx2v-sgmd generate --weights MODEL --lora {path}`"
            if kind == "a LoRA"
            else f"{path}: is {kind}; give a run, a checkpoint or an export"
        )
    checkpoint = find_checkpoint(path, on_damage)
    job_file = checkpoint / "job.yaml"
    job = load_job(job_file)
    averaged = ema and has_average(checkpoint)
    step = int(read_trainer_state(checkpoint)["step"])
    teacher = open_teacher(job.teacher)
    job = with_defaults(job, teacher)
    own = open_own_models(job, teacher).get("student")
    model = teacher if own is None else own
    about = _about(job, step, averaged, model, None if own is None else own.path)
    lora = job.student.adapters
    opened = [
        student_tensors(checkpoint, averaged, expert.model, lora, number)
        for number, expert in enumerate(model.experts)
    ]
    tensors, _, carried = opened[0]
    if carried is not None and carried != job.steps:
        raise UserError(
            f"{checkpoint}: carries the schedule {carried.to_dict()['timesteps']}, but its job "
            f"says {job.steps.to_dict()['timesteps']}; export a checkpoint as it was written"
        )
    run = checkpoint.parent.parent
    changes: list[StackedAdapters | TrainedAdapters | None] = [each[1] for each in opened]
    if relative_to != BASE:
        about = _above_fine_tune(about, model)
    else:
        changes = [
            _of_base(trained, expert.model)
            for (_, trained, _), expert in zip(opened, model.experts, strict=True)
        ]
    source = ExportSource(checkpoint, tensors, model, about, job_file, _metrics(run), changes[0])
    if len(opened) == 1:
        return source
    low_noise = model.experts[1].model
    second = replace(source, tensors=opened[1][0], adapters=changes[1], model=low_noise)
    return replace(source, second=second)


def _of_base(
    trained: TrainedAdapters | None, model: Model
) -> StackedAdapters | TrainedAdapters | None:
    """Adapters as changes of a network without its LoRAs; see ``StackedAdapters.of``."""
    return StackedAdapters.of(trained, model) if trained is not None and model.loras else trained


def _above_fine_tune(about: Manifest, model: Model) -> Manifest:
    """The manifest of adapters that go on top of the teacher's LoRAs.

    Raises:
        UserError: the student did not start from the teacher, or the teacher has no LoRAs.
    """
    if about.student_base is not None:
        raise UserError(
            f"relative-to: the student started from {about.student_base} and not from the teacher; "
            "use --relative-to base"
        )
    loras = loras_of(model.experts)
    if not loras:
        raise UserError(
            "relative-to: the teacher of this run has no LoRAs (teacher.loras), so it is the base; "
            "leave the option out"
        )
    pair = len(model.experts) > 1
    return replace(about, loras=tuple(f"{_name(x.path, pair)}:{x.strength:g}" for x in loras))


def _name(lora: Path, pair: bool) -> str:
    """A LoRA file's name, with its folder's where only that says which of two experts it is for."""
    if pair and expert_of_file(Path(lora.name)) is None:
        return f"{lora.parent.name}/{lora.name}"
    return lora.name


def _about(job: Job, step: int, averaged: bool, model: Model, student_base: str | None) -> Manifest:
    method = parse_value(job.to_yaml(), "the job")["method"]
    return Manifest(
        method={"name": method.pop("name"), "options": method},
        teacher=job.teacher.path,
        student_base=student_base,
        teacher_dtype=job.teacher.dtype,
        schedule=job.steps,
        guidance_scale=job.teacher.guidance_scale,
        guidance_scale_2=job.teacher.guidance_scale_2,
        video=VideoFacts(job.video.height, job.video.width, job.video.frames, model.fps),
        step=step,
        ema=averaged,
        dtype="fp32",
        negative_prompt=model.negative_prompt_for(job.teacher.negative_prompt),
    )


def _exported(folder: Path) -> ExportSource:
    """An exported folder, whole and unchanged."""
    about = read_manifest(folder)
    assert about is not None, folder
    changed = changed_files(folder, about.sha256)
    if changed:
        raise UserError(f"{folder}: {changed[0]}; it is damaged, export the weights again")
    written_in = format_named(about.format)
    if about.loras:
        own = [written_in.weight_files(folder, n) for n in range(written_in.expert_count(folder))]
        files = " ".join(f"--lora {text}" for text in about.loras)
        above = " ".join(f"--lora {each[0].parent}" for each in own)
        raise UserError(
            f"{folder}: holds adapters that go on top of LoRAs, which are not in it; run it as "
            f"`lightx2v-sgmd generate --weights {about.base} {files} {above}`, or export the run "
            "with --relative-to base"
        )
    job_file = folder / "job.yaml"
    model = written_in.open_model(folder, lambda: teacher_of(about, job_file))
    sources: list[ExportSource] = []
    for number, expert in enumerate(model.experts):
        header = read_headers(written_in.weight_files(folder, number))
        tensors, adapters = written_in.open_tensors(folder, header, expert.model)
        if schedule_of(header.metadata) != about.schedule:
            raise UserError(
                f"{folder}: its weights carry another schedule than {FILE_NAME}; export the run "
                "again"
            )
        sources.append(
            ExportSource(
                folder,
                tensors,
                expert.model,
                replace(about, sha256={}),
                job_file if job_file.is_file() else None,
                _metrics(folder),
                adapters,
            )
        )
    second = sources[1] if len(sources) > 1 else None
    return replace(sources[0], model=model, second=second)


def _metrics(folder: Path) -> Mapping[str, Any] | None:
    """The results that an evaluation wrote beside the weights or in the run, if any."""
    path = folder / "metrics.json"
    try:
        content = parse_json(read_file(path, RECORD.size), RECORD)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not readable JSON; evaluate again or remove it") from error
    return content if isinstance(content, dict) else None
