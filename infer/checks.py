"""Checks of a folder of weights before anything of it is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from infer.network.lora import check_loras, lora_schedule
from infer.options import Lora
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.inspection.loras import lora_at
from lightx2v_sgmd.families.opening import WEIGHT_FILES, open_model
from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.sources.model_folder import model_folder
from lightx2v_sgmd.families.wan.original import transformer_prefix
from lightx2v_sgmd.families.wan.sources import ORIGINAL_EXPERTS
from lightx2v_sgmd.files.manifest import FILE_NAME, Manifest, VideoFacts, read_manifest
from lightx2v_sgmd.files.run_files import is_checkpoint, is_run
from lightx2v_sgmd.files.tensors.dtypes import FLOAT_TYPES
from lightx2v_sgmd.files.tensors.safetensors_files import (
    PICKLE_SUFFIXES,
    SHARD,
    Header,
    check_keys,
    refuse_pickle,
    schedule_of,
)
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.rollout import check_solver, solvers_of
from lightx2v_sgmd.schedule import Schedule, even_timesteps, evenly_spaced
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.system.resources import shipped_model

ANCHOR: Final = "patch_embedding.weight"
ENGINE_SHIFT: Final = 8.0
"""The flow shift of Wan's students where the schedule is assumed and none is named."""


@dataclass(frozen=True)
class Preset:
    """The steps of another trainer's students.

    Attributes:
        schedule: The steps.
        differs: The differences of this engine from that trainer's own code; "" if none.
        fewer: True if its code runs the first steps of the list alone, too.
    """

    schedule: Schedule
    differs: str = ""
    fewer: bool = False


# The steps stand in the trainers' public code:
# lightx2v: `denoising_step_list` and `timestep_shift` of LightX2V's trainer (configs/train/sgmd and
# configs/train/dmd for Wan2.1 at f8aee98) and of its own step-distilled models (configs/distill).
# self-forcing: guandeh17/Self-Forcing at 33593df, configs/self_forcing_dmd.yaml (warped by the
# shift) and pipeline/causal_inference.py.
# fastwan: hao-ai-lab/FastVideo at 2f3d407, `dmd_denoising_steps` and DmdDenoisingStage.
# rcm: NVlabs/rcm at 5b41aa9, rcm/inference/wan2pt1_t2v_rcm_infer.py: sin t / (sin t + cos t) of the
# TrigFlow times atan(80), 1.5, 1.4 and 1.
_RCM_TIMES: Final = (math.atan(80), 1.5, 1.4, 1.0)
PRESETS: Final = {
    "lightx2v": Preset(Schedule((1000.0, 750.0, 500.0, 250.0), 5.0)),
    "self-forcing": Preset(
        Schedule((1000.0, 750.0, 500.0, 250.0), 5.0, "renoise"),
        "Self-Forcing generates blocks of 3 latent frames, each attending to those before it, and "
        "this engine all frames at once, each attending to all",
    ),
    "fastwan": Preset(
        Schedule((1000.0, 757.0, 522.0), 1.0, "renoise"),
        "FastWan's students with sparse attention (VSA) are not run, those with full attention are",
    ),
    "rcm": Preset(
        Schedule(
            tuple(1000 * math.sin(t) / (math.sin(t) + math.cos(t)) for t in _RCM_TIMES),
            1.0,
            "renoise",
        ),
        "rCM multiplies the first noise by 80/81 and takes its steps in float64; this engine "
        "starts from noise as it is and takes them in float32",
        fewer=True,
    ),
}
"""Other trainers' students that this engine runs, by the values of ``--assume-schedule``."""


@dataclass(frozen=True)
class Checked:
    """A folder of weights that is whole and fits this engine."""

    model: Model
    manifest: Manifest | None
    schedule: Schedule

    @property
    def video(self) -> VideoFacts | None:
        """The size of video that the weights were trained for; None if nothing says so."""
        return self.model.video if self.manifest is None else self.manifest.video

    @property
    def fps(self) -> float:
        """Frames per second that they were trained for, otherwise the model's own."""
        return self.model.fps if self.video is None else self.video.fps

    @property
    def teacher_dtype(self) -> str | None:
        """The precision of the teacher and its text encoder; None if nothing says so."""
        return None if self.manifest is None else self.manifest.teacher_dtype


def engine_schedule(steps: int = 4) -> Schedule:
    """The schedule that the engine runs with that many steps; 4 is what SGMD trains by default."""
    return Schedule(even_timesteps(steps), ENGINE_SHIFT)


def check_student(
    path: str | Path,
    assume_schedule: str | None = None,
    loras: Sequence[Lora] = (),
    base: str | Path | None = None,
    skip_image_layers: bool = False,
    quiet: bool = True,
) -> Checked:
    """Checks weights: layout, files, keys, shapes and schedule. Loads no tensors but LoRA's.

    Args:
        path: A student that ``lightx2v-sgmd export`` wrote, or a base model for ``loras``: a
            folder in diffusers' or the original layout, a file of a transformer alone, or
            ``sprites`` or ``motions``, the bundled teachers.
        assume_schedule: ``"sgmd"``, ``"sgmd:N"`` for N steps, or another trainer of ``PRESETS``,
            allows weights that carry no schedule.
        loras: Files that will be added; their schedule counts as the weights'.
        base: For a file: the model whose VAE and text encoder it is run with; default the folder
            that it is in.
        skip_image_layers: True applies LoRAs of image-to-video models without these layers.
        quiet: True does not say behind which prefix the weights were, nor what was decoded.

    Raises:
        UserError: says what is wrong with which file, and the remedy.
    """
    _assumed(assume_schedule, ENGINE_SHIFT)  # a wrong name is refused before anything is opened
    opened = model_folder(path)
    model = _open(opened, base)
    folder = opened if opened.is_dir() else opened.parent
    if len(model.experts) > 1:
        for lora in loras:
            if lora.expert is None:
                raise UserError(
                    f"lora: {lora.path} does not say which of the two experts of {path} it is for; "
                    "rename the file or its folder so that it has high_noise or low_noise in its "
                    "name"
                )
    headers = [expert.model.transformer_weights().header for expert in model.experts]
    for weights in (model.vae_weights(), model.text_encoder_weights()):
        assert weights.header.tensors, "reading a header checks the files"
    manifest = read_manifest(folder)
    carried = {
        folder / FILE_NAME: None if manifest is None else manifest.schedule,
        **{_where(header): schedule_of(header.metadata) for header in headers},
        **{lora.path: lora_schedule(lora) for lora in loras},
    }
    for lora in loras:
        manifest = manifest or read_manifest(lora.path.parent)
        if lora.path.parent.name in ORIGINAL_EXPERTS:  # an export of two experts' adapters
            manifest = manifest or read_manifest(lora.path.parent.parent)
    schedule = _schedule(carried, model)
    assumed = _assumed(assume_schedule, model.student_shifts[0])
    if schedule is None and assumed is not None:
        schedule = assumed
        preset = PRESETS.get(str(assume_schedule).partition(":")[0])
        if preset is not None and preset.differs:
            note(f"assume_schedule: {preset.differs}", quiet)
    if schedule is None and "euler" not in solvers_of(model.interpolant):
        raise UserError(
            f"{path}: the weights carry no schedule (neither {FILE_NAME} nor the safetensors "
            f"metadata has one), and wrong steps give blur; give a student of {model.family} that "
            "`lightx2v-sgmd export` wrote"
        )
    if schedule is None:
        raise UserError(
            f"{path}: the weights carry no schedule (in {FILE_NAME} or the safetensors "
            f"metadata), and wrong steps give blur; for {_steps(engine_schedule())}, or to see a "
            "teacher undistilled, add --assume-schedule sgmd (or sgmd:N for N steps)"
        )
    check_solver(schedule.solver, model.interpolant)
    for expert in model.experts:
        _check_network(expert.model, quiet)
    check_loras(loras, model.transformer_shapes(), skip_image_layers, quiet)
    return Checked(model, manifest, schedule)


def _check_network(model: Model, quiet: bool) -> None:
    """Checks the types, keys and shapes of one network's weights."""
    weights = model.transformer_weights()
    header, expected = weights.header, model.transformer_shapes()
    for name, info in header.tensors.items():
        if info.dtype not in FLOAT_TYPES:
            raise UserError(
                f"{info.file}: {name} is stored as {info.dtype}, which the engine cannot run; "
                "give bf16, fp16, fp32 or fp8 weights"
            )
    model.refuse_variant(header, expected, str(_where(header)))
    check_keys(header, expected, str(_where(header)))
    _say_how_read(weights, quiet)


def output_suffix(path: str | Path, base: str | Path | None = None) -> str:
    """The suffix of the files that weights make, ``.mp4`` or ``.png``; reads no weights.

    Args:
        path: As for ``check_student``.
        base: As for ``check_student``.

    Raises:
        UserError: the weights are no model.
    """
    return _open(model_folder(path), base).size_rules.suffix


def _say_how_read(weights: WholeTensors, quiet: bool) -> None:
    """Says what was chosen and stripped in weights of other programs."""
    if ANCHOR not in weights.header.tensors:  # of a family that is read in diffusers' layout alone
        return
    stored = weights.stored_names[ANCHOR]
    prefix = transformer_prefix([stored])
    where = weights.header.tensors[ANCHOR].file
    if prefix and not prefix.endswith("diffusion_model."):
        note(f"{where}: uses the weights behind {shortened(prefix)!r}", quiet)
    if weights.convention is not None:
        note(f"{where}: decodes {weights.convention}", quiet)


def _where(header: Header) -> Path:
    """The file of a network's weights, or the folder of its shards."""
    files = {info.file for info in header.tensors.values()}
    first = min(files)
    return first if len(files) == 1 else first.parent


def wanted_size(
    checked: Checked, height: int | None, width: int | None, num_frames: int | None
) -> tuple[int, int, int]:
    """Height, width and frames to make: as given, else as the student was trained.

    Raises:
        UserError: the model cannot make that size, or nothing says what it was trained for.
    """
    trained = checked.video
    size = []
    for name, value in (("height", height), ("width", width), ("num_frames", num_frames)):
        if value is None and trained is None:
            raise UserError(
                f"{name}: the weights do not say what they were trained for; give --height, "
                "--width and --num-frames"
            )
        size.append(getattr(trained, name) if value is None else value)
    checked.model.latent_shape(*size)
    return size[0], size[1], size[2]


def _open(path: Path, base: str | Path | None) -> Model:
    """Looks at the model, after what is most often given in its place."""
    wrote = "give a folder that `lightx2v-sgmd export` wrote"
    if not path.exists() and known_transformer_config(str(path)) is None:
        raise UserError(f"{path}: does not exist; {wrote}")
    if path.is_file():
        if path.name.endswith(".safetensors.index.json"):
            return _open(path.parent, base)
        if path.suffix in PICKLE_SUFFIXES and path.suffix not in WEIGHT_FILES:
            refuse_pickle(path)
        if path.suffix not in WEIGHT_FILES:
            raise UserError(f"{path}: is not a file of weights; {wrote}")
        shard = SHARD.fullmatch(path.name)
        if shard is not None and int(shard[3]) > 1:
            raise UserError(
                f"{path}: is one of {int(shard[3])} shards of a network; give the folder "
                f"{path.parent}"
            )
    elif is_run(path) or is_checkpoint(path):
        raise UserError(
            f"{path}: is a training run, not a student; first `lightx2v-sgmd export {path} "
            "--format diffusers --out DIR`"
        )
    kind = lora_at(path)
    if kind is not None and not _is_export(path):
        remedy = f"give its base model as --weights, and add --lora {path}"
        if kind != "a LoRA":
            remedy = "give weights that it was merged into"
        raise UserError(f"{path}: is {kind}; {remedy}")
    try:
        return open_model(path, base or _teacher_of_export(path))
    except UserError as error:
        pickles = sorted(p for p in path.glob("*") if p.suffix in PICKLE_SUFFIXES)
        if pickles and not (path / "config.json").exists():  # as a folder of the release has
            if pickles[0].suffix not in WEIGHT_FILES:
                refuse_pickle(pickles[0])
            raise UserError(
                f"{path}: is not a model; if {pickles[0].name} holds a transformer, give that file "
                "as --weights, and as --base the model that it is a variant of"
            ) from error
        reason = str(error).replace("teacher.path: ", "").replace("teacher.base", "--base")
        raise UserError(f"weights: {reason}") from error


def _is_export(path: Path) -> bool:
    return ((path if path.is_dir() else path.parent) / FILE_NAME).is_file()


def _teacher_of_export(path: Path) -> str | None:
    """The model whose VAE and text encoder an export without them is run with.

    Raises:
        UserError: the export is a LoRA.
    """
    folder = path if path.is_dir() else path.parent
    manifest = read_manifest(folder)
    if manifest is None or manifest.format == "diffusers":
        return None
    if manifest.format == "lora":
        pair = (folder / ORIGINAL_EXPERTS[0]).is_dir()
        parts = [folder / name for name in ORIGINAL_EXPERTS] if pair else [folder]
        raise UserError(
            f"{path}: is a LoRA; give its teacher as --weights, and add "
            + " ".join(f"--lora {part}" for part in parts)
        )
    base = manifest.base
    known = known_transformer_config(base) is not None
    if shipped_model(base) is None and not known and not Path(base).is_dir():
        whose = "its teacher" if manifest.student_base is None else "the model it started from,"
        raise UserError(
            f"{path}: holds a network alone, and {whose} {shortened(base)}, whose "
            "VAE and text encoder it is run with, is not a folder here; add --base DIR with a "
            "model of that size"
        )
    return base


def _assumed(name: str | None, shift: float) -> Schedule | None:
    """The schedule of ``--assume-schedule`` for a family whose students have that flow shift."""
    if name is None:
        return None
    family, _, steps = name.partition(":")
    if family == "sgmd" and (
        not steps or (steps.isdecimal() and len(steps) < 4 and 1 <= int(steps) <= 100)
    ):
        return Schedule(even_timesteps(int(steps or 4)), shift)
    preset = PRESETS.get(family)
    if preset is not None:
        schedule, most = preset.schedule, len(preset.schedule)
        if not steps:
            return schedule
        if preset.fewer and steps in map(str, range(1, most + 1)):
            return replace(schedule, base=schedule.base[: int(steps)])
        allowed = f" to {family}:{most}" if preset.fewer else ""
        raise UserError(
            f"assume_schedule: {shortened(name)!r}: students of {family} have {most} steps; use "
            f"{family}{', or ' + family + ':1' + allowed if preset.fewer else ''}"
        )
    raise UserError(
        f"assume_schedule: {shortened(name)!r} is unknown; use 'sgmd', 'sgmd:N' for N steps, or "
        f"{' or '.join(map(repr, PRESETS))}"
    )


def _schedule(carried: Mapping[Path, Schedule | None], model: Model) -> Schedule | None:
    """The schedule that weights carry: one that the engine runs, the same wherever it stands."""
    first: tuple[Path, Schedule] | None = None
    for where, schedule in carried.items():
        if schedule is None:
            continue
        if not _runs(schedule, model):
            shifts, solver = model.student_shifts, solvers_of(model.interpolant)[0]
            known = " or ".join(f"{shift:g}" for shift in shifts)
            example = Schedule(even_timesteps(4), shifts[0], solver)
            raise UserError(
                f"{where}: the weights were distilled for {_steps(schedule)}; this engine runs "
                f"shift {known} of evenly spaced steps, as {_steps(example)}, "
                "and would give blur; use weights distilled for such steps"
            )
        if first is not None and schedule != first[1]:
            raise UserError(
                f"{where}: says {_steps(schedule)}, but {first[0]} says {_steps(first[1])}; "
                "export the weights again"
            )
        first = (where, schedule)
    return None if first is None else first[1]


def _runs(schedule: Schedule, model: Model) -> bool:
    # The file format keeps three decimals of a timestep.
    near = evenly_spaced(schedule.base, tolerance=1e-3)  # saved schedules are rounded
    known = schedule.solver in solvers_of(model.interpolant)
    return near and known and schedule.shift in model.student_shifts


def _steps(schedule: Schedule) -> str:
    steps = "/".join(f"{t:.0f}" for t in schedule.timesteps.tolist())
    return f"timesteps {steps} (shift {schedule.shift:g}, {schedule.solver})"
