"""Opens what is to be exported: a run, a checkpoint, or weights that were exported before.

``student_tensors`` is the one place that knows how a checkpoint holds its student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightx2v_sgmd.families.wan import WanModel, open_wan
from lightx2v_sgmd.files.checkpoint import find_checkpoint, read_trainer_state
from lightx2v_sgmd.files.manifest import FILE_NAME, Manifest, Video, changed_files, read_manifest
from lightx2v_sgmd.files.safetensors_files import check_keys, read_headers, schedule_of
from lightx2v_sgmd.files.student_weights import has_average, student_files
from lightx2v_sgmd.files.yaml_loader import parse_value, read_tree
from lightx2v_sgmd.job.schema import Job, Lora, load_job
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import RECORD, parse_json
from lightx2v_sgmd.untrusted.reading import read_file
from weights.formats.layouts import names_of, weights_in
from weights.io.adapters import PortableAdapters, TrainedAdapters
from weights.io.tensors import FileTensors, MergedTensors, ReaderTensors, Tensors, network_shapes


@dataclass(frozen=True)
class Source:
    """A student to export; nothing of it is loaded yet.

    Attributes:
        path: The checkpoint or the exported folder that holds it.
        tensors: Its weights.
        model: Its network's configuration.
        about: What it says about itself. ``dtype`` is how it is stored; ``sha256`` is empty.
        job_file: The job that made it, if it is there.
        metrics: Of its evaluation, if it has been evaluated.
        adapters: The adapters that it was made of, None for a student trained in full.
    """

    path: Path
    tensors: Tensors
    model: WanModel
    about: Manifest
    job_file: Path | None = None
    metrics: Mapping[str, Any] | None = None
    adapters: PortableAdapters | TrainedAdapters | None = None

    @property
    def lora(self) -> Lora | None:
        """How its adapters were trained; None if all weights were, or if nothing says so."""
        student = self._job_section("student")
        return Lora(**student["lora"]) if student.get("train") == "lora" else None

    @property
    def step(self) -> int:
        """Iterations behind it."""
        return self.about.step

    @property
    def ema(self) -> bool:
        """Whether it is the moving average."""
        return self.about.ema

    @property
    def schedule(self) -> Schedule:
        """The steps it was trained on."""
        return self.about.schedule

    @property
    def prompts(self) -> str | None:
        """What it was trained on, as its job names it."""
        prompts = self._job_section("data").get("prompts")
        return None if prompts is None else str(prompts)

    def _job_section(self, name: str) -> dict[str, Any]:
        if self.job_file is None:
            return {}
        section = read_tree(self.job_file)[0].get(name, {})
        return section if isinstance(section, dict) else {}


def open_source(
    path: str | Path, ema: bool, on_damage: Callable[[str], None] | None = None
) -> Source:
    """Checks a run folder, a checkpoint folder or an exported folder, and the teacher it names.

    Args:
        path: The folder.
        ema: Prefer the moving average where there is one.
        on_damage: Told of each damaged checkpoint of a run that is passed over.

    Raises:
        UserError: no whole checkpoint, a damaged file, keys that do not fit the teacher's network,
            a schedule that is not the job's, or a teacher that is not there.
    """
    path = Path(path)
    if (path / FILE_NAME).is_file():
        return _exported(path)
    checkpoint = find_checkpoint(path, on_damage)
    job_file = checkpoint / "job.yaml"
    job = load_job(job_file)
    averaged = ema and has_average(checkpoint)
    step = int(read_trainer_state(checkpoint)["step"])
    model = open_wan(job.teacher.path, job.teacher.base)
    about = _about(job, step, averaged, model.fps)
    tensors, adapters, carried = student_tensors(checkpoint, averaged, model, job.student.adapters)
    if carried is not None and carried != job.schedule:
        raise UserError(
            f"{checkpoint}: carries the schedule {carried.to_dict()['timesteps']}, but its job "
            f"says {job.schedule.to_dict()['timesteps']}; export a checkpoint as it was written"
        )
    run = checkpoint.parent.parent
    return Source(checkpoint, tensors, model, about, job_file, _metrics(run), adapters)


def student_tensors(
    checkpoint: Path, averaged: bool, model: WanModel, lora: Lora | None
) -> tuple[Tensors, TrainedAdapters | None, Schedule | None]:
    """A checkpoint's student, its adapters if it has any, and the schedule that its file carries.

    Args:
        checkpoint: Its folder.
        averaged: The moving average, or the last weights.
        model: The teacher, whose weights adapters are merged into.
        lora: How the adapters were trained; None if all weights were.

    Raises:
        UserError: the file is damaged or does not fit the network, or adapters' teacher is not
            on this machine and cannot be fetched.
    """
    files = student_files(checkpoint, averaged)
    what = str(files[0] if len(files) == 1 else checkpoint)
    header = read_headers(files)
    carried = schedule_of(header.metadata)
    if lora is None:
        tensors = FileTensors.checked(header, network_shapes(model), str, what)
        return tensors, None, carried
    adapters = TrainedAdapters.checked(header, lora, model, what)
    return MergedTensors(model_tensors(model), adapters), adapters, carried


def _about(job: Job, step: int, averaged: bool, fps: float) -> Manifest:
    method = parse_value(job.to_yaml(), "the job")["method"]
    return Manifest(
        method={"name": method.pop("name"), "options": method},
        teacher=job.teacher.path,
        teacher_dtype=job.teacher.dtype,
        schedule=job.schedule,
        guidance_scale=job.teacher.guidance_scale,
        video=Video(job.video.height, job.video.width, job.video.num_frames, fps),
        step=step,
        ema=averaged,
        dtype="fp32",
    )


def _exported(folder: Path) -> Source:
    """An exported folder, whole and unchanged."""
    about = read_manifest(folder)
    assert about is not None, folder
    if about.dtype == "fp8":
        raise UserError(
            f"{folder}: holds 8-bit weights, which have lost precision; export from the run, or "
            "from a bf16 export"
        )
    changed = changed_files(folder, about.sha256)
    if changed:
        raise UserError(f"{folder}: {changed[0]}; it is damaged, export the weights again")
    header = read_headers(weights_in(folder, about.format))
    job_file = folder / "job.yaml"
    model = open_wan(folder) if about.format == "diffusers" else teacher_of(about, job_file)
    adapters = None
    if about.format == "lora":
        adapters = PortableAdapters.checked(header, network_shapes(model), str(folder))
        tensors: Tensors = MergedTensors(model_tensors(model), adapters)
    else:
        shapes = network_shapes(model)
        tensors = FileTensors.checked(header, shapes, names_of(about.format, header), str(folder))
    if schedule_of(header.metadata) != about.schedule:
        raise UserError(f"{folder}: its weights carry another schedule than {FILE_NAME}")
    return Source(
        folder,
        tensors,
        model,
        replace(about, sha256={}),
        job_file if job_file.is_file() else None,
        _metrics(folder),
        adapters,
    )


def _metrics(folder: Path) -> Mapping[str, Any] | None:
    """What an evaluation left beside the weights or in the run."""
    path = folder / "metrics.json"
    try:
        content = parse_json(read_file(path, RECORD.size), RECORD)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not readable JSON; evaluate again or remove it") from error
    return content if isinstance(content, dict) else None


def teacher_tensors(source: Source) -> Tensors:
    """The weights of a student's teacher, in whatever layout they are.

    Raises:
        UserError: they are not on this machine and cannot be fetched, or are damaged.
    """
    return model_tensors(teacher_of(source.about, source.job_file))


def teacher_of(about: Manifest, job_file: Path | None) -> WanModel:
    """The teacher that a student names; its job says what a lone file of weights belongs to."""
    base = None
    if job_file is not None and job_file.is_file():
        section = read_tree(job_file)[0].get("teacher", {})
        base = section.get("base") if isinstance(section, dict) else None
        if base is not None and not isinstance(base, str):
            raise UserError(f"{job_file}: teacher.base: is not text; export the weights again")
    return open_wan(about.teacher, base)


def model_tensors(model: WanModel) -> Tensors:
    """A model's network, checked against its configuration."""
    weights = model.transformer_weights()
    shapes = network_shapes(model)
    check_keys(weights.header, shapes, f"teacher.path: {model.path}")
    return ReaderTensors(weights, shapes)
