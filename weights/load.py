"""Opens what is to be exported: a run's newest whole checkpoint, its job and its teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.job import Job, load_job
from lightx2v_sgmd.manifest import changed_files
from lightx2v_sgmd.models.wan import open_wan
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.tensorfiles import (
    Header,
    check_keys,
    read_header,
    read_headers,
    schedule_of,
    weight_files,
)

STUDENT = "student.safetensors"
STUDENT_EMA = "student_ema.safetensors"


@dataclass(frozen=True)
class Source:
    """A student to export; nothing of it is loaded yet.

    Attributes:
        checkpoint: Its folder.
        weights: The safetensors file in it, float32 under diffusers' names.
        header: That file's header.
        ema: Whether the file is the moving average.
        step: Iterations behind it.
        job: The job that made it.
        schedule: The steps it was trained on.
        teacher: A local folder with the parts that a student shares with its teacher.
    """

    checkpoint: Path
    weights: Path
    header: Header
    ema: bool
    step: int
    job: Job
    schedule: Schedule
    teacher: Path


def open_source(path: str | Path, ema: bool) -> Source:
    """Checks a run folder or a checkpoint folder, and the teacher that it names.

    Args:
        path: The folder.
        ema: Prefer the moving average where there is one.

    Raises:
        UserError: no whole checkpoint, a damaged file, keys that do not fit the teacher's network,
            a schedule that is not the job's, or a teacher that is not there.
    """
    checkpoint = _checkpoint(Path(path))
    averaged = ema and (checkpoint / STUDENT_EMA).is_file()
    weights = checkpoint / (STUDENT_EMA if averaged else STUDENT)
    header = read_header(weights)
    job = load_job(checkpoint / "job.yaml")
    carried = schedule_of(header.metadata)
    if carried is not None and carried != job.schedule:
        raise UserError(
            f"{weights}: carries the schedule {carried.to_dict()['timesteps']}, but its job says "
            f"{job.schedule.to_dict()['timesteps']}; export a checkpoint as it was written"
        )
    teacher = _teacher_folder(job.teacher.path)
    with torch.device("meta"):
        network = open_wan(teacher).build_transformer().state_dict()
    check_keys(header, {name: tuple(t.shape) for name, t in network.items()}, str(weights))
    step = _step(checkpoint / "trainer.json")
    return Source(checkpoint, weights, header, averaged, step, job, job.schedule, teacher)


def _checkpoint(path: Path) -> Path:
    """The checkpoint folder that is meant, whole."""
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder; give a run folder or one of its checkpoints")
    if (path / "trainer.json").is_file():
        if problems := _problems(path):
            raise UserError(f"{path}: is not a whole checkpoint: {problems[0]}; give another one")
        return path
    found = sorted((path / "checkpoints").glob("step_*"), reverse=True)
    for folder in found:
        if not _problems(folder):
            return folder
    if found:
        raise UserError(f"{path}: none of its {len(found)} checkpoints is whole; train again")
    raise UserError(
        f"{path}: has no checkpoints; give a run folder that `lightx2v-sgmd distill` made"
    )


def _problems(checkpoint: Path) -> list[str]:
    """What of a checkpoint is not as its manifest says."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["files"]
        hashes = {str(name): str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["its manifest is missing or not readable"]
    return changed_files(checkpoint, hashes)


def _step(path: Path) -> int:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: does not say the step; export a checkpoint as it was written"
        ) from error


def _teacher_folder(path: str) -> Path:
    """The teacher's folder on this machine, with the files of the shared parts checked."""
    folder = Path(open_wan(path).path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        parts = ["vae/*", "text_encoder/*", "tokenizer/*", "transformer/config.json"]
        folder = Path(snapshot_download(path, allow_patterns=[*parts, "model_index.json"]))
    for part, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        read_headers(weight_files(folder / part, stem))
    for needed in ("tokenizer", "model_index.json"):
        if not (folder / needed).exists():
            raise UserError(f"{folder / needed}: is missing in the teacher; give its whole folder")
    return folder
