"""The curves of a run's page, and what each should look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MOST_POINTS: Final = 400
"""Points of a curve; a longer run shows the means of neighbouring iterations."""
_LARGEST: Final = 1e100
"""The size from which a number is left out, so that sums stay finite."""
_NOT_SHOWN: Final = {
    "step",
    "exit_step",
    "forwards",
    "recomputed",
    "backwards",
    "weight_backwards",
    "forward_equivalents",
    "cpu_seconds",
    "sampling_seconds",
    "teacher_samples",
    "warnings",
}
_TEXTS: Final = {
    "samples/optflow": (
        "Motion of the samples",
        "Stays near the dashed line, the teacher's. A student that falls far below it has learnt "
        "to move less.",
    ),
    "samples/brightness": (
        "Brightness of the samples",
        "Stays near the dashed line, the teacher's.",
    ),
    "samples/saturation": (
        "Saturation of the samples",
        "Stays near the dashed line, the teacher's. A steady climb or fall is a drift.",
    ),
    "samples/contrast": (
        "Contrast of the samples",
        "Stays near the dashed line, the teacher's.",
    ),
    "samples/flicker": (
        "Flicker of the samples",
        "Near or below the dashed line, the teacher's.",
    ),
    "samples/frechet": (
        "Frechet distance from the teacher's samples",
        "Falls, then levels out. When it rises again, the best checkpoint is behind you. With few "
        "samples it is noisy.",
    ),
    "fisher": (
        "Fisher: from the fake score to the teacher",
        "Falls, then levels out. It does not reach zero.",
    ),
    "nr": (
        "NR: the student follows the fake score",
        "Negative by design, small beside Fisher, and level.",
    ),
    "rc": (
        "RC: the fake score follows the student",
        "Level after the first iterations. A steady climb means that the fake score lags behind.",
    ),
    "seconds": ("Seconds of an iteration", "Level. A climb is a machine that slows down."),
    "peak_memory_gib": ("Peak memory in GiB", "Level after the first iterations."),
}
_GRADIENT: Final = "Level, without jumps. Above train.clip it is scaled down."
_LOSS: Final = "Level or slowly falling, without jumps."


@dataclass(frozen=True)
class Curve:
    """A curve of the page.

    Attributes:
        key: The value's name in ``metrics.jsonl``; ``grad_norm/student`` is within ``grad_norm``.
        title: Title of the curve.
        expected: The shape that it should have, in a sentence.
        steps: The steps of its points.
        values: The values of its points.
        teacher: The teacher's value, for the measures of samples.
    """

    key: str
    title: str
    expected: str
    steps: list[int]
    values: list[float]
    teacher: float | None = None


def curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """All curves of a run: those of the samples first, then losses, gradients and the rest.

    Args:
        lines: The lines of ``metrics.jsonl``, in the order of their steps.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    teacher: dict[str, float] = {}
    for line in lines:
        for name, value in line.items():
            if name not in _NOT_SHOWN:
                for key, number in _numbers(name, value):
                    steps, values = found.setdefault(key, ([], []))
                    steps.append(line["step"])
                    values.append(number)
        teacher |= dict(_numbers("samples", line.get("teacher_samples")))
    made = [
        Curve(key, *_text(key), *shortened(*points), teacher=teacher.get(key))
        for key, points in found.items()
    ]
    return sorted(made, key=lambda curve: _page_order(curve.key))


def shortened(
    steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS
) -> tuple[list[int], list[float]]:
    """At most ``most`` points: the means of neighbours, at the last of their steps."""
    each = -(-len(steps) // most)
    starts = range(0, len(steps), max(1, each))
    ends = [min(start + each, len(steps)) for start in starts]
    means = [
        sum(values[start:end]) / (end - start) for start, end in zip(starts, ends, strict=True)
    ]
    return [steps[end - 1] for end in ends], means


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    """The numbers of a value that can be drawn, by key."""
    parts = value.items() if isinstance(value, dict) else [("", value)]
    return [
        (f"{name}/{part}".rstrip("/"), float(number))
        for part, number in parts
        if isinstance(number, int | float) and abs(number) < _LARGEST
    ]


def _text(key: str) -> tuple[str, str]:
    if key in _TEXTS:
        return _TEXTS[key]
    kind, _, part = key.partition("/")
    role = part.replace("_", " ")
    if kind == "grad_norm":
        return f"Gradient norm of the {role}", _GRADIENT
    if kind == "lr":
        return f"Learning rate of the {role}", "As the job says: it rises, stays, and may fall."
    return key.replace("_", " "), _LOSS


def _page_order(key: str) -> tuple[int, int]:
    """The order of a curve on the page: its kind, then its own position among the texts."""
    kinds = ("samples", "", "grad_norm", "seconds", "peak_memory_gib", "lr")
    kind = key.partition("/")[0]
    named = list(_TEXTS)
    return (
        kinds.index(kind) if kind in kinds else kinds.index(""),
        named.index(key) if key in named else len(named),
    )
