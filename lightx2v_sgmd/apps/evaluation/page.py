"""The evaluation's report: one page with tables, plots and videos that play together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.apps.evaluation import plots
from lightx2v_sgmd.apps.evaluation.options import METRICS
from lightx2v_sgmd.apps.pages import figure_uri, render_page, video_uri

_MOST_BYTES: Final = 40 * 2**20
"""The most bytes of videos in the page; with large ones, fewer prompts are shown."""
_RANKED: Final = 5
"""Prompts in each of the lists of worst and best."""


def report_page(results: dict[str, Any], out: Path, shown: int) -> str:
    """The text of ``report.html``, which needs no network and no file beside it.

    Args:
        results: The content of ``metrics.json``.
        out: The output folder, for the paths of videos.
        shown: The most prompts whose videos are shown.
    """
    names = side_names(results)
    drawn = [("How much the videos move", plots.motion_histogram(results, names))]
    if "against" in names:
        drawn.append(("Motion, video by video", plots.motion_pairs(results, names)))
        if (figure := plots.difference_plot(results)) is not None:
            drawn.append(("Differences from the reference", figure))
    order = ranked(results)
    return render_page(
        "evaluation.html.j2",
        r=results,
        names=names,
        rows=table_rows(results),
        sets=set_rows(results),
        plots=[{"title": title, "image": figure_uri(figure)} for title, figure in drawn],
        lists=ranked_lists(results, order),
        examples=examples(results, out, shown, order),
        meanings=[(METRICS[name].title, METRICS[name].meaning) for name in results["metrics"]],
    )


def side_names(results: dict[str, Any]) -> dict[str, str]:
    """The names of the two sides for readers: the end of the path, and its kind."""
    names = {}
    for side, about in results["sides"].items():
        what = {"student": "student", "teacher": "teacher", "videos": "videos"}[about["kind"]]
        name = Path(about["path"]).name
        names[side] = what if name == what else f"{name} ({what})"
    if len(set(names.values())) < len(names):
        names = {side: f"{name}, --{side}" for side, name in names.items()}
    return names


def table_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of measures: for each the sides' means, and the difference with its interval."""
    rows = []
    measures = {side: about["measures"] for side, about in results["sides"].items()}
    for name in measures["weights"]:
        metric = METRICS[name]
        row: dict[str, Any] = {
            "title": metric.title,
            "values": [with_interval(of[name], metric.digits) for of in measures.values()],
            "difference": "",
            "relative": "",
            "clear": None,
        }
        if difference := results.get("differences", {}).get(name):
            row["difference"] = with_interval(difference, metric.digits, sign="+")
            if difference["relative"] is not None:
                row["relative"] = f"{100 * difference['relative']:+.1f} %"
            row["clear"] = difference["clear"]
        rows.append(row)
    return rows


def with_interval(value: dict[str, Any], digits: int, sign: str = "") -> str:
    """``0.512 [0.498, 0.530]``."""
    mean = f"{value['mean']:{sign}.{digits}f}"
    if value["low"] is None:
        return mean
    return f"{mean} [{value['low']:{sign}.{digits}f}, {value['high']:{sign}.{digits}f}]"


def set_rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Title, value and remark of the metrics of whole sets."""
    rows = []
    if motion := results.get("motion"):
        rows.append(
            (
                "Slow videos",
                _with_ends(motion, "slow", 1, 100) + " %",
                f"25 % of the reference's move less than {motion['slow_below']:.3f} px per frame",
            )
        )
        rows.append(
            (
                "Fast videos",
                _with_ends(motion, "fast", 1, 100) + " %",
                f"25 % of the reference's move more than {motion['fast_above']:.3f} px per frame",
            )
        )
        rows.append(
            (
                "Distance of the motion",
                _with_ends(motion, "distance", 3),
                "pixels per frame by which a video's motion must change on average",
            )
        )
    for name in ("frechet", "fvd"):
        if found := results.get(name):
            metric = METRICS[name]
            remark = f"{found['videos'][0]} and {found['videos'][1]} videos"
            if found["floor"] is not None:
                halves = f"{found['floor']:.{metric.digits}f}"
                remark += f"; two halves of the reference are {halves} apart"
            rows.append((metric.title, f"{found['distance']:.{metric.digits}f}", remark))
    return rows


def _with_ends(motion: dict[str, Any], name: str, digits: int, scale: float = 1) -> str:
    low, high = (motion["intervals"] or {}).get(name, (None, None))
    ends = {"low": None, "high": None}
    if low is not None:
        ends = {"low": scale * low, "high": scale * high}
    return with_interval({"mean": scale * motion[name], **ends}, digits)


def ranked(results: dict[str, Any]) -> list[int]:
    """The prompts' indices, worst first: farthest from the reference, or with the least motion."""
    scores = results["ranking"]["scores"]
    return sorted(
        range(len(scores)), key=lambda i: scores[i], reverse="against" in results["sides"]
    )


def ranked_lists(results: dict[str, Any], order: list[int]) -> list[dict[str, Any]]:
    """The lists of worst and best prompts, with their scores."""
    compared = "against" in results["sides"]
    titles = ("Worst: farthest from the reference", "Best: nearest to the reference")
    if not compared:
        titles = ("Least motion", "Most motion")
    count = _listed(order)
    parts = (order[:count], order[: -count - 1 : -1])
    return [
        {
            "title": title,
            "prompts": [
                (results["videos"][i]["prompt"], f"{results['ranking']['scores'][i]:.2f}")
                for i in part
            ],
        }
        for title, part in zip(titles, parts, strict=True)
        if part
    ]


def _listed(order: list[int]) -> int:
    """The number of prompts in each list; no prompt is in both."""
    return min(_RANKED, len(order) // 2)


def examples(
    results: dict[str, Any], out: Path, shown: int, order: list[int]
) -> list[dict[str, Any]]:
    """The prompts that are shown with their videos: worst, best, then the first of the file."""
    count = min(_listed(order), shown // 3)
    kinds = dict.fromkeys(order[: -count - 1 : -1], "best") if count else {}
    kinds |= dict.fromkeys(order[:count], "worst")
    wanted = list(dict.fromkeys([*order[:count], *order[: -count - 1 : -1][:count]]))
    wanted += [i for i in range(len(order)) if i not in wanted]
    found: list[dict[str, Any]] = []
    left = _MOST_BYTES
    for index in wanted[:shown]:
        video = results["videos"][index]
        files = {side: out / video[side]["file"] for side in results["sides"]}
        left -= sum(file.stat().st_size for file in files.values())
        if left < 0 and found:
            break
        found.append(
            {
                "prompt": video["prompt"],
                "seed": video["seed"],
                "kind": kinds.get(index, ""),
                "score": results["ranking"]["scores"][index],
                "clips": [
                    {
                        "side": side,
                        "uri": video_uri(file),
                        "width": video[side]["width"],
                        "height": video[side]["height"],
                        "small": min(video[side]["width"], video[side]["height"]) < 160,
                        "flow": video[side]["optflow"],
                        "fps": video[side]["fps"],
                    }
                    for side, file in files.items()
                ],
            }
        )
    return found
