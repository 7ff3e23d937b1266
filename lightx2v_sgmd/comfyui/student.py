"""The checks of a file of weights before ComfyUI loads it: its steps, and a LoRA's network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.tensors.safetensors_files import read_header, schedule_of
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError, joined

_DOWN: Final = (".lora_A.weight", ".lora_down.weight")
_UP: Final = {".lora_A.weight": ".lora_B.weight", ".lora_down.weight": ".lora_up.weight"}


@dataclass(frozen=True)
class StudentFile:
    """The weights that a workflow loads, and the steps that they were distilled for.

    Attributes:
        weights: Name of the file in ``models/diffusion_models``.
        lora: Name of the file in ``models/loras`` that makes it a student, or None.
        schedule: The steps.
    """

    weights: str
    lora: str | None
    schedule: Schedule

    def record(self) -> dict[str, Any]:
        """The form that is saved with a video."""
        return {**asdict(self), "schedule": self.schedule.to_dict()}


def check_student(weights: Path, lora: Path | None = None) -> Schedule:
    """The steps that a file of weights, or a LoRA for it, says it was distilled for.

    Raises:
        UserError: neither says so, the two differ, or a file is no safetensors file.
    """
    files = [weights] if lora is None else [weights, lora]  # which may have one name
    carried = [(path.name, schedule_of(read_header(path).metadata)) for path in files]
    known = [(name, schedule) for name, schedule in carried if schedule is not None]
    if not known:
        names = " and ".join(name for name, _ in carried)
        raise UserError(
            f"{names}: carries no schedule, and steps that weights were not distilled for give "
            "blur; load a file that `lightx2v-sgmd export --format comfyui` or `lora` wrote"
        )
    first = known[0][1]
    if any(schedule != first for _, schedule in known):
        steps = [f"{name}: {joined(s.to_dict()['timesteps'])}" for name, s in known]
        raise UserError(
            f"the two files were distilled for other steps ({', '.join(steps)}); load the two of "
            "one student"
        )
    return first


def check_lora_fits(
    lora: Path, layers: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses a LoRA of another network, which ComfyUI itself leaves out with a warning.

    Args:
        lora: The file.
        layers: The name of each layer in LoRA files, and that of its weight in the network.
        shapes: The shape of each weight of the network.

    Raises:
        UserError: no layer, or a layer of another shape.
    """
    tensors = read_header(lora).tensors
    count = 0
    for name, down in tensors.items():
        suffix = next((end for end in _DOWN if name.endswith(end)), None)
        if suffix is None:
            continue
        layer = name.removesuffix(suffix)
        weight = layers.get(layer)
        if weight is None:
            raise UserError(
                f"{lora.name}: {layer} is not a layer of the network; load its own base"
            )
        up = tensors.get(layer + _UP[suffix])
        expected = shapes[weight][:2]
        found = (*(up.shape[:1] if up else ()), *down.shape[1:2])
        if found != expected:
            raise UserError(
                f"{lora.name}: changes {layer} by a matrix of {'x'.join(map(str, found))}, but the "
                f"network's has {'x'.join(map(str, expected))}; load the LoRA's own base"
            )
        count += 1
    if not count:
        raise UserError(f"{lora.name}: holds no LoRA layer; use ComfyUI's own loader for it")
