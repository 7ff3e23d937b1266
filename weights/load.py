"""Opens what is to be exported: a run's newest whole checkpoint, its job and its teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lightx2v_sgmd.checkpoint import find_checkpoint, read_trainer_state
from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.job import Job, load_job
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


def open_source(
    path: str | Path, ema: bool, on_damage: Callable[[str], None] | None = None
) -> Source:
    """Checks a run folder or a checkpoint folder, and the teacher that it names.

    Args:
        path: The folder.
        ema: Prefer the moving average where there is one.
        on_damage: Told of each damaged checkpoint of a run that is passed over.

    Raises:
        UserError: no whole checkpoint, a damaged file, keys that do not fit the teacher's network,
            a schedule that is not the job's, or a teacher that is not there.
    """
    checkpoint = find_checkpoint(Path(path), on_damage)
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
    step = int(read_trainer_state(checkpoint)["step"])
    return Source(checkpoint, weights, header, averaged, step, job, job.schedule, teacher)


def _teacher_folder(path: str) -> Path:
    """The teacher's folder on this machine, with the files of the shared parts checked."""
    folder = Path(open_wan(path).path)
    if not folder.is_dir():
        folder = _downloaded(path)
    for part, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        read_headers(weight_files(folder / part, stem))
    for needed in ("tokenizer", "model_index.json"):
        if not (folder / needed).exists():
            raise UserError(f"{folder / needed}: is missing in the teacher; give its whole folder")
    return folder


def _downloaded(hub_id: str) -> Path:
    """The shared parts of a teacher on the hub, from the local cache if they are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    parts = ["vae/*", "text_encoder/*", "tokenizer/*", "transformer/config.json"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*parts, "model_index.json"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"teacher.path: the VAE and text encoder of {hub_id} cannot be fetched "
            f"({type(error).__name__}); check the network, or name a local folder in the job"
        ) from error
