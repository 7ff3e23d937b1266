"""The comparison's report: one page with tables, curves and videos, and the contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.apps.comparison import columns, measuring
from lightx2v_sgmd.apps.comparison.plan import TEACHER, UNDISTILLED, Plan
from lightx2v_sgmd.apps.comparison.plots import UNITS, plot, plot_title
from lightx2v_sgmd.apps.comparison.tables import seeds_done
from lightx2v_sgmd.apps.pages import COLOURS, figure_uri, image_uri, render_page, video_uri
from lightx2v_sgmd.files.video import IMAGE_SUFFIX, contact_sheet, read_frames
from lightx2v_sgmd.outputs import WrittenFiles

_MOST_BYTES: Final = 40 * 2**20
"""The most bytes of videos in the page; with large ones, fewer prompts are shown."""
_PLOTTED: Final = ("frechet", "all_attributes", "motion", "optflow", "coverage", "rare")
"""Columns that are drawn against compute."""
_SHEET_PROMPTS: Final = 4
_SHEET_SIZE: Final = 96


def write_page(plan: Plan, results: dict[str, Any], written: WrittenFiles) -> None:
    """Writes ``report.html``, which needs no network and no file beside it, and the sheet.

    Args:
        plan: The comparison.
        results: The results of ``tables.build_results``.
        written: The comparison's files.
    """
    videos = _videos(plan)
    html = render_page(
        "comparison.html.j2",
        r=results,
        tables=[
            _table(results, part)
            for part in (*columns.PARTS, columns.COSTS)
            if part == columns.PARTS[0] or results["compute"]["budget"] is not None
        ],
        budget=columns.budget_text(results) if results["compute"]["budget"] else "",
        columns=[
            *columns.shown(results, columns.QUALITY),
            *columns.shown(results, columns.COST),
        ],
        no_captions="" if results["captions_checkable"] else columns.NO_CAPTIONS,
        missing=columns.missing_text(results),
        plots=_plots(results),
        colours=dict(zip(plan.jobs, COLOURS * len(plan.jobs), strict=False)),
        prompts=_examples(plan, videos),
        jobs={label: job.to_yaml() for label, job in plan.jobs.items()},
        settings=plan.settings,
    )
    written.write_text("report.html", html)
    _write_sheet(plan, written, videos)


def _table(results: dict[str, Any], part: str) -> dict[str, Any]:
    """A table as text, with the cells that are best of the trained rows."""
    heads, rows = columns.table(results, part)
    shown = columns.table_columns(results, part)
    best = set()
    for index, column in enumerate(shown, start=len(heads) - len(shown)):
        far = {
            name: distance
            for name, row in results["rows"].items()
            if "method" in row and (distance := _badness(results, row, column, part)) is not None
        }
        if len(far) < 2:
            continue
        printed = {row[0]: row[index] for row in rows}
        winner = printed[min(far, key=lambda name: far[name])].split(" ")[0]
        # Values that are printed alike are equally good.
        best |= {(name, index) for name in far if printed[name].split(" ")[0] == winner}
    return {"part": part, "heads": heads, "rows": rows, "best": best}


def _badness(
    results: dict[str, Any], row: dict[str, Any], column: columns.Column, part: str
) -> float | None:
    """Small is good: by the column's direction, or as the distance from the teacher's value."""
    value = columns.cell(row, column, part)
    target = columns.cell(results["rows"][TEACHER], column, columns.PARTS[0])
    if value is None:
        return None
    mean = float(value["mean"])
    if column.better:
        return mean if column.better == "down" else -mean
    return abs(mean - target["mean"]) if target is not None else None


def _plots(results: dict[str, Any]) -> list[dict[str, str]]:
    unit = results["compute"]["unit"]
    drawn = []
    for column in columns.shown(results, columns.QUALITY):
        if column.key not in _PLOTTED:
            continue
        figure = plot(results, column, unit, log=column.key == "frechet")
        if figure is not None:
            title = plot_title(column)
            drawn.append(
                {
                    "title": title,
                    "text": f"{title} against {UNITS[unit]}",
                    "image": figure_uri(figure),
                }
            )
    return drawn


def _videos(plan: Plan) -> dict[str, list[Path]]:
    """Each row's videos of its first seed, prompt by prompt."""
    found = {}
    for row in plan.rows:
        seeds = seeds_done(plan, row)
        if seeds:
            folder = plan.videos(row, seeds[0])
            found[row] = sorted(file for end in ("mp4", "png") for file in folder.glob(f"*.{end}"))
    return found


def _examples(plan: Plan, videos: dict[str, list[Path]]) -> list[dict[str, Any]]:
    """The videos of each prompt, and for each if it is right where that is known."""
    texts = _prompts(plan)
    right = {row: _right(plan, row) for row in videos}
    examples: list[dict[str, Any]] = []
    left = _MOST_BYTES
    for index, text in enumerate(texts):
        clips = {row: paths[index] for row, paths in videos.items() if index < len(paths)}
        left -= sum(path.stat().st_size for path in clips.values())
        if left < 0 and examples:
            break
        shown = {
            row: {
                "uri": (image_uri if path.suffix == IMAGE_SUFFIX else video_uri)(path),
                "is_image": path.suffix == IMAGE_SUFFIX,
                "right": right[row][index] if right[row] else None,
            }
            for row, path in clips.items()
        }
        examples.append({"text": text, "clips": shown})
    return examples


def _right(plan: Plan, row: str) -> list[bool]:
    seed = seeds_done(plan, row)[0]
    step = 0 if row in (TEACHER, UNDISTILLED) else plan.snapshots()[-1]
    return measuring.load(plan.measurement(row, seed, step)).right or []


def _prompts(plan: Plan) -> list[str]:
    return plan.evaluation_prompts[: plan.settings.shown]


def _write_sheet(plan: Plan, written: WrittenFiles, videos: dict[str, list[Path]]) -> None:
    clips, texts = [], []
    for index, text in enumerate(_prompts(plan)[:_SHEET_PROMPTS]):
        for row, paths in videos.items():
            if index < len(paths):
                frames = read_frames(paths[index])
                # As large as the eye needs; pixels that were doubled for players go again.
                step = max(1, min(frames.shape[1:3]) // _SHEET_SIZE)
                clips.append(frames[:, ::step, ::step])
                texts.append(f"{row}: {text}")
    if clips:
        sheet = "contact_sheet.png"
        publish = written.publish(sheet)
        contact_sheet(clips, written.folder / sheet, captions=texts, publish=publish)
