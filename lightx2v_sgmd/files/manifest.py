"""The manifest ``lightx2v_sgmd.json``: what exported weights say about themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.tensors.safetensors_files import refuse_odd_name, refuse_outside_links
from lightx2v_sgmd.outputs import sha256_files
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import read_record

FILE_NAME: Final = "lightx2v_sgmd.json"
FORMAT_VERSION: Final = 1
FORMATS: Final = ("diffusers", "wan", "comfyui", "lora")
TEACHER_DTYPES: Final = ("float32", "bfloat16")
_WEIGHTS: Final = (".safetensors", ".pth", ".pt", ".bin")
_MOST_BYTES: Final = 100_000_000
"""The largest listed file that holds no weights; umT5's tokenizer has 17 MB."""


@dataclass(frozen=True)
class VideoFacts:
    """Size in pixels, number of frames and frames per second that the student was trained for."""

    height: int
    width: int
    num_frames: int
    fps: float


@dataclass(frozen=True)
class Manifest:
    """The origin of exported weights, and how to run them.

    Args:
        method: ``{"name": "sgmd", "options": {...}}``.
        teacher: Path or hub id of the teacher, as its job named it.
        student_base: Path or hub id of the model that the student started from, if that is not the
            teacher.
        loras: LoRA files, as ``NAME:STRENGTH``, that must be merged into the base before adapters
            that are relative to a fine-tune; empty for all other exports.
        schedule: The steps that the student was trained on.
        guidance_scale: The teacher's guidance in training (Ho-Salimans form). The student is run
            without guidance.
        guidance_scale_2: That of the teacher's second expert, if it had one of its own.
        video: The size that it was trained for; the defaults of ``generate``.
        step: Iterations behind the weights.
        ema: True if they are the moving average.
        dtype: ``bf16``, ``fp16``, ``fp32`` or ``fp8``.
        sha256: The sha256 of each file, by its path below the folder.
        format: The export format: ``diffusers``, ``wan``, ``comfyui`` or ``lora``.
        negative_prompt: The prompt that the teacher was guided away from in training, "" for the
            empty one; None if an older version wrote the file.
        teacher_dtype: Precision of the teacher, and of the text encoder, also when videos are made;
            None if an older version wrote the file.
    """

    method: Mapping[str, Any]
    teacher: str
    schedule: Schedule
    guidance_scale: float
    video: VideoFacts
    step: int
    ema: bool
    dtype: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    format: str = "diffusers"
    teacher_dtype: str | None = None
    negative_prompt: str | None = None
    student_base: str | None = None
    loras: tuple[str, ...] = ()
    guidance_scale_2: float | None = None

    @property
    def base(self) -> str:
        """Path or hub id of the model whose network the student has."""
        return self.student_base or self.teacher

    def to_dict(self) -> dict[str, Any]:
        """The form that is saved."""
        second = self.guidance_scale_2
        return {
            "format_version": FORMAT_VERSION,
            "format": self.format,
            "method": dict(self.method),
            "teacher": self.teacher,
            **({"student_base": self.student_base} if self.student_base else {}),
            **({"loras": list(self.loras)} if self.loras else {}),
            **({"teacher_dtype": self.teacher_dtype} if self.teacher_dtype else {}),
            "schedule": self.schedule.to_dict(),
            "guidance_scale": self.guidance_scale,
            **({} if second is None else {"guidance_scale_2": second}),
            **({} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}),
            "video": asdict(self.video),
            "step": self.step,
            "ema": self.ema,
            "dtype": self.dtype,
            "sha256": dict(self.sha256),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Manifest:
        """Reads the saved form.

        Raises:
            UserError: a field is missing or has another type, or a newer version wrote it.
        """
        version = saved.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"format_version: {version!r} is not the {FORMAT_VERSION} that this version reads; "
                "export the weights again or update lightx2v-sgmd"
            )
        try:
            return cls(
                method=dict(saved["method"]),
                teacher=str(saved["teacher"]),
                schedule=Schedule.from_dict(saved["schedule"]),
                guidance_scale=_finite(saved, "guidance_scale"),
                guidance_scale_2=_finite(saved, "guidance_scale_2")
                if "guidance_scale_2" in saved
                else None,
                video=_video(saved["video"]),
                step=int(saved["step"]),
                ema=bool(saved["ema"]),
                dtype=str(saved["dtype"]),
                sha256={str(k): str(v) for k, v in saved["sha256"].items()},
                format=_known("format", saved.get("format", "diffusers"), FORMATS),
                teacher_dtype=_known("teacher_dtype", saved["teacher_dtype"], TEACHER_DTYPES)
                if "teacher_dtype" in saved
                else None,
                negative_prompt=_text("negative_prompt", saved.get("negative_prompt")),
                student_base=_text("student_base", saved.get("student_base")),
                loras=tuple(str(lora) for lora in saved.get("loras", ())),
            )
        except KeyError as error:
            raise UserError(f"{error.args[0]}: is missing; export the weights again") from error
        except UserError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"cannot be read: {error}; export the weights again") from error

    def to_text(self) -> str:
        """The content of the file."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def write(self, folder: Path) -> Path:
        """Writes the file into ``folder``."""
        path = folder / FILE_NAME
        path.write_text(self.to_text(), encoding="utf-8")
        return path


def _finite(saved: Mapping[str, Any], key: str) -> float:
    value = float(saved[key])
    if not math.isfinite(value):
        raise ValueError(f"{key} is not a finite number")
    return value


def _text(key: str, saved: Any) -> str | None:
    if saved is not None and not isinstance(saved, str):
        raise UserError(f"{key}: is not text; export the weights again")
    return saved


def _known(key: str, saved: Any, values: tuple[str, ...]) -> str:
    if saved not in values:
        known = ", ".join(values)
        raise UserError(f"{key}: {saved!r} is not one of {known}; export the weights again")
    return str(saved)


def _video(saved: Mapping[str, Any]) -> VideoFacts:
    height, width, num_frames = (int(saved[k]) for k in ("height", "width", "num_frames"))
    video = VideoFacts(height, width, num_frames, float(saved["fps"]))
    largest = {"height": 2**15, "width": 2**15, "num_frames": 2**16, "fps": 1000.0}
    for name, most in largest.items():
        if not 0 < getattr(video, name) <= most:
            raise ValueError(f"video {name} {getattr(video, name)} is not from 1 to {most}")
    return video


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder of weights, or None if it has none.

    Raises:
        UserError: there is one that cannot be used; the message names the file.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        saved = read_record(path)
        if not isinstance(saved, dict):
            raise UserError("is not a JSON object; export the weights again")
        return Manifest.from_dict(saved)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not readable JSON; export the weights again") from error


def changed_files(folder: Path, sha256: Mapping[str, str]) -> list[str]:
    """Lists the files of ``folder`` that are missing or differ from their hashes, one line each.

    Raises:
        UserError: a name or a link leads out of the folder.
    """
    paths = {name: folder / name for name in sha256}
    for name in paths:
        refuse_odd_name(folder / FILE_NAME, name)
    refuse_outside_links(folder, list(paths.values()))
    there = {name: path for name, path in paths.items() if path.is_file()}
    # Hashing a stranger's 30 GB of JSON takes a minute; nothing but weights is ever so large.
    grown = {
        name
        for name, path in there.items()
        if path.suffix not in _WEIGHTS and path.stat().st_size > _MOST_BYTES
    }
    small = {name: path for name, path in there.items() if name not in grown}
    digests = dict(zip(small, sha256_files(list(small.values())), strict=True))
    return [
        f"{name} {_difference(name in there, name in grown)}"
        for name, expected in sha256.items()
        if digests.get(name) != expected
    ]


def _difference(is_there: bool, has_grown: bool) -> str:
    if has_grown:
        return f"is larger than {_MOST_BYTES:,} bytes, which only weights are"
    return "has changed since it was written (sha256)" if is_there else "is missing"
