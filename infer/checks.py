"""What is looked at in a folder of weights before anything of it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.manifest import FILE_NAME, Manifest, read_manifest
from lightx2v_sgmd.models.wan import WanModel, open_wan
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.tensorfiles import (
    PICKLE_SUFFIXES,
    check_keys,
    read_headers,
    refuse_pickle,
    schedule_of,
    weight_files,
)

ENGINE_SCHEDULE = Schedule()
"""The steps that the engine runs, which are those that SGMD students are trained on."""

_PARTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_RUNNABLE = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Checked:
    """A folder of weights that is whole and fits this engine."""

    model: WanModel
    manifest: Manifest | None
    schedule: Schedule


def check_student(path: str | Path, assume_schedule: str | None = None) -> Checked:
    """Checks an exported student: layout, files, keys, shapes and schedule. Loads no tensors.

    Args:
        path: A folder that ``lightx2v-sgmd export --format diffusers`` wrote.
        assume_schedule: ``"sgmd"`` allows weights that carry no schedule.

    Raises:
        UserError: says what is wrong with which file, and the remedy.
    """
    if assume_schedule not in (None, "sgmd"):
        raise UserError(f"assume_schedule: {assume_schedule!r} is unknown; the only one is 'sgmd'")
    folder = _student_folder(Path(path))
    headers = {
        part: read_headers(weight_files(folder / part, stem)) for part, stem in _PARTS.items()
    }
    manifest = read_manifest(folder)
    schedule = _schedule(folder, manifest, schedule_of(headers["transformer"].metadata))
    if schedule is None:
        if assume_schedule is None:
            raise UserError(
                f"{folder}: the weights carry no schedule (neither {FILE_NAME} nor the safetensors "
                f"metadata has one), and wrong steps give blur; if they were distilled for "
                f"{_steps(ENGINE_SCHEDULE)}, add --assume-schedule sgmd"
            )
        schedule = ENGINE_SCHEDULE
    model = _open(folder)
    header = headers["transformer"]
    for name, info in header.tensors.items():
        if info.dtype not in _RUNNABLE:
            raise UserError(
                f"{info.file}: {name} is stored as {info.dtype}, which the engine cannot run; "
                "export with --dtype bf16, fp16 or fp32"
            )
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in model.build_transformer().state_dict().items()}
    check_keys(header, expected, str(folder / "transformer"))
    return Checked(model, manifest, schedule)


def wanted_size(
    checked: Checked, height: int | None, width: int | None, num_frames: int | None
) -> tuple[int, int, int]:
    """Height, width and frames to make: as given, else as the student was trained.

    Raises:
        UserError: the model cannot make that size, or nothing says what it was trained for.
    """
    trained = checked.manifest.video if checked.manifest else None
    chosen = []
    for name, value in (("height", height), ("width", width), ("num_frames", num_frames)):
        if value is None and trained is None:
            raise UserError(
                f"{name}: the weights do not say what they were trained for; give --height, "
                "--width and --num-frames"
            )
        chosen.append(getattr(trained, name) if value is None else value)
    checked.model.latent_shape(*chosen)
    return chosen[0], chosen[1], chosen[2]


def _student_folder(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: does not exist; give a folder that `lightx2v-sgmd export` wrote")
    if path.is_file():
        refuse_pickle(path)
        raise UserError(f"{path}: is one file; give the folder that `lightx2v-sgmd export` wrote")
    if (path / "model_index.json").is_file():
        return path
    if (path / "checkpoints").is_dir() or (path / "trainer.json").is_file():
        raise UserError(
            f"{path}: is a training run, not a student; first `lightx2v-sgmd export {path} "
            "--format diffusers --out DIR`"
        )
    pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        refuse_pickle(pickles[0])
    raise UserError(
        f"{path}: has no model_index.json; give a folder that `lightx2v-sgmd export` wrote"
    )


def _open(folder: Path) -> WanModel:
    try:
        return open_wan(folder)
    except UserError as error:
        raise UserError(f"weights: {str(error).removeprefix('teacher.path: ')}") from error


def _schedule(
    folder: Path, manifest: Manifest | None, in_files: Schedule | None
) -> Schedule | None:
    """The schedule that the weights carry, which must be the engine's wherever it stands."""
    carried = {
        folder / FILE_NAME: None if manifest is None else manifest.schedule,
        folder / "transformer": in_files,
    }
    for where, schedule in carried.items():
        if schedule is not None and schedule != ENGINE_SCHEDULE:
            raise UserError(
                f"{where}: the weights were distilled for {_steps(schedule)}; this engine runs "
                f"{_steps(ENGINE_SCHEDULE)} and would give blur; use weights distilled for these "
                "steps"
            )
    return next((s for s in carried.values() if s is not None), None)


def _steps(schedule: Schedule) -> str:
    steps = "/".join(f"{t:.0f}" for t in schedule.timesteps.tolist())
    return f"timesteps {steps} (shift {schedule.shift:g}, {schedule.solver})"
