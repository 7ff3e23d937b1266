"""A study's result as text and as a page: the paper's Table 3, and what one must know of it."""

from __future__ import annotations

from typing import Any

from lightx2v_sgmd.apps.pages import render_page
from lightx2v_sgmd.system.errors import escaped, joined


def table(found: dict[str, Any]) -> list[list[str]]:
    """The rows of the table, the head first.

    Args:
        found: From ``summarise``.
    """
    a, b = found["names"]
    rows = [["Question", f"{a} better", "tie", f"{b} better", "pairs won", "p", "agreement"]]
    for question in found["questions"].values():
        if not question["votes"]:
            rows.append([question["title"], *["no votes"] * 3, "", "", ""])
            continue
        test, agreement = question["sign_test"], question["agreement"]
        rows.append(
            [
                question["title"],
                *(percent(question[label]) for label in ("win", "tie", "loss")),
                f"{test['wins']} : {test['losses']}",
                p_value(test["p_value"]),
                "" if agreement is None else f"{agreement:.2f}",
            ]
        )
    return rows


def percent(share: dict[str, Any]) -> str:
    """``65 % [56, 74]``."""
    mean = f"{100 * share['mean']:.0f} %"
    if share["low"] is None:
        return mean
    return f"{mean} [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def p_value(value: float) -> str:
    """A probability with two digits; small ones as a bound."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def remarks(found: dict[str, Any]) -> list[str]:
    """Sentences that belong under the table."""
    raters, said = found["raters"], []
    count = len(raters["counted"])
    said.append(
        f"{count} rater{'s' if count != 1 else ''} and {found['pairs']} pairs; shares are of all "
        "answers, with 95 % intervals for other raters and other videos"
    )
    if raters["left_out"]:
        out = [f"{r['rater']} ({r['wrong']} of {r['of']} wrong)" for r in raters["left_out"]]
        said.append(
            f"{len(out)} rater{'s' if len(out) != 1 else ''} left out for more than "
            f"{found['catch_errors']} wrong answers in catch trials: {joined(out)}"
        )
    elif found["catch_trials"]:
        said.append("nobody was left out for wrong answers in catch trials")
    else:
        said.append("the study has no catch trials, so careless raters are counted too")
    if raters["unchecked"]:
        said.append(f"counted without having met a catch trial: {joined(raters['unchecked'])}")
    if found["replaced"]:
        said.append(f"{found['replaced']} submissions were replaced by later ones of their raters")
    if found["skipped"]:
        said.append(f"{found['skipped']} pairs were skipped because a video could not be played")
    if found["left"] is not None:
        said.append(f"{100 * found['left']:.0f} % of the choices are for the left video")
    said.append(
        "pairs won: pairs with more votes for one side, tied ones left out; p: exact two-sided "
        "sign test on them; agreement: Krippendorff's alpha, 1 is perfect and 0 is chance"
    )
    return said


def text_report(found: dict[str, Any]) -> str:
    """The table and the remarks as plain text.

    Names come from the key and from raters, so characters that a terminal would obey are escaped.
    """
    rows = [[escaped(cell) for cell in row] for row in table(found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", *(f"- {escaped(remark)}" for remark in remarks(found))])


def page_report(found: dict[str, Any]) -> str:
    """The report as a page, which needs no network and no file beside it."""
    bars = [
        {
            "title": question["title"],
            "text": question["text"],
            "votes": question["votes"],
            "parts": [
                {"kind": label, "share": 100 * question[label]["mean"]}
                for label in ("win", "tie", "loss")
            ]
            if question["votes"]
            else [],
        }
        for question in found["questions"].values()
    ]
    return render_page(
        "study_report.html.j2", found=found, rows=table(found), bars=bars, remarks=remarks(found)
    )
