"""The page of VBench's scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.apps.vbench.page import report_page
from lightx2v_sgmd.apps.vbench.suite import Suite
from lightx2v_sgmd.apps.vbench.summary import summarise
from tests.apps.vbench.test_summary import results
from tests.browser import chromium, opened


def test_the_page_says_which_set_up_a_score_belongs_to() -> None:
    page = report_page(results(scene=5))
    for said in ("longer.txt", "2.13.0", "0.1.5", "2.4.1", "missing videos as 0", "5 of 10"):
        assert said in page
    assert "<i>student" not in page and "&lt;i&gt;student" in page
    plain = summarise(
        Suite(Path("i.json"), "0", ("a",), ("a",), {"color": (0,)}), range(5), {}, {"weights": "w"}
    )
    assert "<td>Prompt augmentation</td><td>none</td>" in report_page(plain)


@pytest.mark.slow
def test_the_page_opens_in_a_browser(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(report_page(results(scene=5)), encoding="utf-8")
    with chromium() as browser:
        page, problems = opened(browser, tmp_path / "report.html")
        row = page.locator("tr", has_text="Scene")
        assert row.locator("td").all_inner_texts() == ["Scene", "80.00", "5 of 10", "5"]
        assert problems == []
