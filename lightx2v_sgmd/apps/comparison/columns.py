"""The columns of the tables: what each is called, how it is printed, and what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: In a row's measurements, or in its ``cost``.
        title: The head of the column.
        digits: After the point.
        meaning: For people who see it for the first time.
        better: ``up``, ``down`` or, where neither is, the empty text.
        captions: True if it needs captions that can be checked in the frames.
    """

    key: str
    title: str
    digits: int
    meaning: str
    better: str = ""
    captions: bool = False


QUALITY = (
    Column(
        "frechet",
        "Frechet",
        2,
        "quality: how far the videos, as a crowd, are from the teacher's. The Frechet distance "
        "between features measured in the frames (on the sprite world: positions, sizes, colours, "
        "speeds, defects; elsewhere: simple statistics of pixels and flow). It is not FVD, whose "
        "features are a network's. Smaller is better; the teacher's own row says how far two "
        "samples of it are apart",
        "down",
    ),
    Column(
        "all_attributes",
        "all right",
        3,
        "semantic: share of videos that are clean and right on everything that the caption names, "
        "checked in the frames; it stands in for VBench's scores",
        "up",
        captions=True,
    ),
    Column(
        "motion",
        "motion",
        3,
        "mean speed of the objects, tracked in the frames, relative to the teacher's on the same "
        "prompts and noise",
        captions=True,
    ),
    Column(
        "optflow",
        "OptFlow",
        4,
        "mean absolute optical flow over frames and pixels, in pixels per frame. Approximate: "
        "OpenCV's DIS in place of the paper's UniMatch. Masked: flow counts as zero where the "
        "picture is flat (less than 8 grey levels of contrast nearby), which lowers it on videos "
        "with smooth areas",
    ),
    Column(
        "dyndeg",
        "DynDeg",
        3,
        "dynamic degree by VBench's rule: share of videos in which the fastest twentieth of the "
        "pixels moves by more than 6 pixels per frame of 256 (0.75 of 32) in a quarter of the "
        "frames. Approximate and masked: on the flow of OptFlow in place of RAFT's",
    ),
    Column(
        "diversity",
        "diversity",
        4,
        "mean distance (root mean square over pixels, 0 to 1) between videos of one prompt from "
        "different noise; pixels stand in for the LPIPS of the ADM paper",
    ),
    Column(
        "coverage",
        "coverage",
        3,
        "where captions leave an attribute open, how evenly its values are made "
        "(entropy; 1 is even)",
        "up",
        captions=True,
    ),
    Column(
        "rare",
        "rare",
        3,
        "where captions leave the motion open, share of videos with one of the rare, fast motions: "
        "fast, turn, bounce or late",
        captions=True,
    ),
    *(
        Column(
            f"open_{manner}",
            manner,
            3,
            f"where captions leave the motion open, share of videos {what}",
            captions=True,
        )
        for manner, what in {
            "still": "whose object rests",
            "slow": "whose object moves slowly",
            "fast": "whose object moves fast, straight on",
            "turn": "whose object moves fast and turns by a right angle",
            "bounce": "whose object moves fast and comes back",
            "late": "whose object waits and then moves fast",
            "other": "that show no motion of the world",
        }.items()
    ),
)
COST = (
    Column("cpu_seconds", "CPU s/it", 3, "processor seconds of one training iteration", "down"),
    Column("relative", "times", 2, "the same, relative to the row that needs least", "down"),
    Column("seconds", "s/it", 3, "the same by the clock, other work of the machine included"),
    Column(
        "forwards",
        "forwards/it",
        2,
        "passes of one sample through any of the networks, counted as they happen",
    ),
    Column("backwards", "backwards/it", 2, "passes back to a network's inputs, counted alike"),
    Column(
        "equivalents",
        "cost/it",
        2,
        "all of an iteration in forwards of one sample: forwards, recomputed forwards, a pass back "
        "to the inputs and the gradient of the weights count one each",
        "down",
    ),
)


def shown(results: dict[str, Any], columns: Sequence[Column]) -> list[Column]:
    """The columns for which there is anything to show."""
    found = []
    for column in columns:
        if column.captions and not results["captions_checkable"]:
            continue
        if any(cell(row, column, part) for row in results["rows"].values() for part in PARTS):
            found.append(column)
    return found


PARTS = ("equal_iterations", "equal_compute")
COSTS = "cost"


def cell(row: dict[str, Any], column: Column, part: str) -> dict[str, Any] | None:
    """A row's value with its spread, if it has one."""
    where = row.get("cost", {}) if column in COST else row.get(part, {})
    value: dict[str, Any] | None = where.get(column.key)
    return value


def text(value: dict[str, Any] | None, digits: int) -> str:
    """``0.840 ± 0.012``, without the spread of a single seed."""
    if value is None:
        return "-"
    mean = f"{value['mean']:.{digits}f}"
    return mean if value["std"] is None else f"{mean} ± {value['std']:.{digits}f}"


def table_columns(results: dict[str, Any], part: str) -> list[Column]:
    """The columns of a table behind those that describe its rows."""
    return shown(results, COST if part == COSTS else QUALITY)


def table(results: dict[str, Any], part: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table, as text.

    Args:
        results: The results of ``build_results``.
        part: ``equal_iterations``, ``equal_compute`` or ``cost``.
    """
    columns = table_columns(results, part)
    heads = ["", "NFE", "Fake-R", "iterations", *(column.title for column in columns)]
    lines = []
    for name, row in results["rows"].items():
        trained = "method" in row
        if part == COSTS and not trained:
            continue
        # Teacher and undistilled are what they are at any compute.
        source = part if trained and part != COSTS else PARTS[0]
        found = row.get(source, {}) if trained else {}
        step = str(found.get("step", "-"))
        if "share" in found:
            step += f" ({found['share']:.0%})"
        values = [text(cell(row, column, source), column.digits) for column in columns]
        updates = row.get("fake_score_updates", "-")
        lines.append([name, str(row.get("nfe", "-")), str(updates), step, *values])
    return heads, lines


def markdown(results: dict[str, Any]) -> str:
    """The tables with what they mean, as ``table.md``."""
    seeds = len(results["seeds"])
    lines = [
        f"# Comparison on {results['teacher']}",
        "",
        f"{results['iterations']} iterations of batch {results['batch']}, {seeds} "
        f"seed{'s' if seeds > 1 else ''}, {results['prompts']} prompts. Mean ± standard deviation "
        "over seeds; the seeds of teacher and undistilled are of sampling only. "
        f"{results['about']}",
        "",
        "## At equal iterations",
        "",
        *_grid(*table(results, PARTS[0])),
    ]
    if results["compute"]["budget"] is not None:
        lines += ["", "## At equal compute", "", budget_text(results), ""]
        lines += _grid(*table(results, PARTS[1]))
        lines += ["", "## Cost of an iteration", "", *_grid(*table(results, COSTS))]
    if not results["captions_checkable"]:
        lines += ["", NO_CAPTIONS]
    if missing := missing_text(results):
        lines += ["", missing]
    lines += [
        "",
        "## Columns",
        "",
        "- NFE: network evaluations for one video.",
        "- Fake-R: fake-score updates in an iteration.",
    ]
    columns = [*shown(results, QUALITY), *shown(results, COST)]
    lines += [f"- {column.title}: {column.meaning}." for column in columns]
    for task, problem in results["failures"].items():
        lines += ["", f"Failed: {task}: {problem}"]
    return "\n".join(lines) + "\n"


NO_CAPTIONS = (
    "What this teacher's captions ask for cannot be checked in the frames, so the columns on "
    "captions are left out; Frechet is on simple statistics of pixels, and of flow in videos."
)


def budget_text(results: dict[str, Any]) -> str:
    """The meaning of equal compute in these results."""
    compute = results["compute"]
    unit = "CPU seconds" if compute["unit"] == "seconds" else "forward equivalents"
    amount = f"{compute['budget']:,.0f}".replace(",", " ")
    return (
        f"Every row at its last snapshot within the {amount} {unit} with which "
        f"{compute['cheapest']}, the cheapest, ended; in brackets, how much of it was spent by "
        "then. A row that was cut short had not come to the end of its learning rate's schedule."
    )


def missing_text(results: dict[str, Any]) -> str:
    """The rows that stand on fewer seeds than the others; empty if none does."""
    asked = len(results["seeds"])
    short = {
        name: len(row["seeds"])
        for name, row in results["rows"].items()
        if len(row["seeds"]) < asked
    }
    counts = ", ".join(f"{name} {count}" for name, count in short.items())
    return f"Not all of the {asked} seeds are done: {counts}." if short else ""


def _grid(heads: list[str], rows: list[list[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(line)} |" for line in (heads, marks, *rows)]
