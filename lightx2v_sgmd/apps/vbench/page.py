"""VBench's result as text and as a page."""

from __future__ import annotations

from typing import Any

from lightx2v_sgmd.apps.pages import render_page
from lightx2v_sgmd.apps.vbench.summary import is_incomplete
from lightx2v_sgmd.system.errors import joined


def aggregate_rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Title, value, and value with missing videos as 0."""
    found = results["vbench"]
    return [
        (
            title,
            percent(found["aggregate"][name]),
            percent(found["aggregate_missing_as_zero"][name]),
        )
        for name, title in (("total", "Total"), ("quality", "Quality"), ("semantic", "Semantic"))
    ]


def dimension_rows(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Title, score, videos that were measured of those wanted, and the missing ones."""
    rows = []
    for about in results["vbench"]["dimensions"].values():
        measured = about["measured"]
        if measured is None and about["missing"] is not None:
            measured = f"at most {about['wanted'] - about['missing']}"
        if about["score"] is None:
            measured = "0"
        missing = str(about["missing"]) if about["missing"] else ""
        score = percent(about["score"])
        rows.append((about["title"], score, f"{measured} of {about['wanted']}", missing))
    return rows


def percent(score: float | None) -> str:
    """A score as VBench's tables print it."""
    return "not measured" if score is None else f"{100 * score:.2f}"


def setup_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The weights, settings and versions that the scores belong to, in words."""
    setup = results["vbench"]["setup"]
    augmentation, two = setup["prompt_augmentation"], "guidance_scale_2" in setup
    rows = [
        ("Prompts", f"{setup['number_of_prompts']} of {setup['prompts']}"),
        ("Videos of a prompt", str(setup["videos_of_a_prompt"])),
        ("Prompt augmentation", augmentation["file"] if augmentation else "none"),
    ]
    for key, title in (
        ("weights", "Weights"),
        ("method", "Method"),
        ("step", "Training step"),
        ("nfe", "Network evaluations for a video"),
        ("solver", "Solver"),
        ("guidance_scale", "Guidance scale"),
        *([("guidance_scale_2", "Guidance scale of the second expert")] if two else []),
        ("size", "Video size"),
        ("first_seed", "Seed of the first video"),
        ("torch", "PyTorch that made the videos"),
        ("vbench", "vbench that measured them"),
        ("vbench_torch", "PyTorch that measured them"),
        ("results", "Results read from"),
    ):
        value = setup.get(key)
        rows.append((title, "not known" if value is None else str(value)))
    return rows


def cautions(results: dict[str, Any]) -> list[str]:
    """The cautions for whoever compares the numbers with others."""
    found, said = results["vbench"], []
    videos = found["videos"]
    if videos["missing"]:
        said.append(f"{videos['missing']} of {videos['wanted']} videos are missing")
    short = [a["title"] for a in found["dimensions"].values() if a["missing"]]
    if short:
        said.append(f"measured on fewer videos than wanted: {joined(short, 16)}")
    if found["not_measured"]:
        said.append(f"not measured: {joined(found['not_measured'], 16)}")
    return said


def text_report(results: dict[str, Any]) -> str:
    """The scores as plain text."""
    incomplete = is_incomplete(results)
    lines = []
    for title, value, zero in aggregate_rows(results):
        lines.append(f"{title:24}{value:>14}" + (f"{zero:>14}" if incomplete else ""))
    if incomplete:
        lines.insert(0, f"{'':24}{'as found':>14}{'missing as 0':>14}")
    lines.append("")
    lines += [
        f"{title:24}{score:>14}   {videos}" for title, score, videos, _ in dimension_rows(results)
    ]
    return "\n".join([*lines, *(f"caution: {text}" for text in cautions(results))])


def report_page(results: dict[str, Any]) -> str:
    """The report as a page, which needs no network and no file beside it."""
    return render_page(
        "vbench.html.j2",
        aggregates=aggregate_rows(results),
        dimensions=dimension_rows(results),
        setup=setup_rows(results),
        cautions=cautions(results),
        incomplete=is_incomplete(results),
    )
