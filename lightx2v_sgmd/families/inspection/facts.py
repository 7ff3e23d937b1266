"""The facts of an inspection, and their wording."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.tensors.dtypes import FILE_NAMES, OPTIONS
from lightx2v_sgmd.files.tensors.safetensors_files import METADATA_KEY, Header, schedule_of
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import shortened

SHOWN: Final = 4


@dataclass
class Inspection:
    """The kind of a file or folder of weights, and its facts.

    Attributes:
        path: The file or folder.
        kind: ``network``, ``LoRA``, ``text encoder``, ``VAE``, ``model``, ``export``, ``training
            run``, ``checkpoint`` or ``unknown``.
        facts: Known facts by label, in the order in which they are printed.
        missing: Things that are missing to generate with it, each in a line.
    """

    path: Path
    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The inspection as text, a fact a line."""
        told = [f"{self.path}: {self.kind}", *(f"  {k}: {v}" for k, v in self.facts.items())]
        return told + [f"  missing: {line}" for line in self.missing]

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON holds it."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            **{label.replace(" ", "_"): value for label, value in self.facts.items()},
            "missing": self.missing,
        }


def add_schedule_fact(found: Inspection, header: Header, sgmd: bool = True) -> None:
    """Adds the schedule that weights carry, or says that they lack one.

    Args:
        found: The inspection, which is changed.
        header: The weights.
        sgmd: True if the network can take the steps of SGMD's students, so that they may be
            assumed.
    """
    schedule = schedule_of(header.metadata)
    if schedule is not None:
        found.facts["schedule"] = f"{steps_text(schedule)} (metadata {METADATA_KEY!r})"
    elif sgmd:
        found.missing.append("a schedule: add --assume-schedule sgmd if it is that of SGMD")
    else:
        found.missing.append("a schedule, which exports of `lightx2v-sgmd export` have")


def steps_text(schedule: Schedule) -> str:
    """A schedule in words: ``1000/960/889/727, shift 8, euler``."""
    steps = "/".join(f"{t:.0f}" for t in schedule.timesteps.tolist())
    return f"{steps}, shift {schedule.shift:g}, {schedule.solver}"


def size_text(height: int, width: int, frames: int) -> str:
    """A video's size in words, ``480x832, 81 frames``, or an image's, which is one frame."""
    return f"{height}x{width}" if frames == 1 else f"{height}x{width}, {frames} frames"


def types_text(header: Header) -> str:
    """The types of a header's tensors with their counts, the commonest first: ``825 in bf16``."""
    options = {FILE_NAMES[dtype]: option for option, dtype in OPTIONS.items()}
    counts = Counter(info.dtype for info in header.tensors.values())
    return ", ".join(f"{n} in {options.get(kind, kind)}" for kind, n in counts.most_common())


def some_of(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(shortened, names[:SHOWN])) + more
