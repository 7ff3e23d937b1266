"""The demo on the bundled teacher, made short, and the page that it writes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.demo import DemoResult, run_demo
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.system.errors import UserError

SHORT = ["train.iterations=2", "train.micro_batch=2", "train.checkpoint_every=1"]


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo"), prompts=4, quiet=True, overrides=SHORT)


@pytest.mark.slow
def test_makes_everything_that_it_names(short_demo: DemoResult) -> None:
    out = short_demo.out
    for name in ("report.html", "contact_sheet.png", "metrics.json"):
        assert (out / name).stat().st_size > 0
    assert (out / "student" / "model_index.json").is_file()
    assert (out / "run" / "metrics.jsonl").read_text().count("\n") == 2
    videos = sorted((out / "videos").glob("*.mp4"))
    assert len(videos) == 4 * 3
    frames, fps = read_video(videos[0])
    assert frames.shape == (9, 192, 192, 3) and fps == 8


@pytest.mark.slow
def test_metrics_keep_the_contract(short_demo: DemoResult) -> None:
    metrics = json.loads((short_demo.out / "metrics.json").read_text())
    assert metrics["seed"] == 0
    assert metrics["seconds"]["total"] >= metrics["seconds"]["distill"] > 0
    expected = {"teacher": 100, "undistilled": 4, "student": 4}
    keys = "nfe colour shape direction speed all_attributes motion frechet coverage prompts"
    for name, nfe in expected.items():
        row = metrics[name]
        assert set(keys.split()) <= set(row) and row["nfe"] == nfe and row["prompts"] == 4
        assert all(math.isfinite(value) for value in row.values())
    assert metrics["teacher"]["frechet"] < 1e-6 < metrics["undistilled"]["frechet"]
    assert metrics["teacher"]["motion"] == 1


@pytest.mark.slow
def test_the_report_is_one_page_that_needs_no_network(short_demo: DemoResult) -> None:
    page = (short_demo.out / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    videos = [s for s in sources if s.startswith("data:video/mp4;base64,")]
    plots = [s for s in sources if s.startswith("data:image/svg+xml;base64")]
    assert len(videos) == 12 and len(plots) == 5 and len(sources) == 17
    assert "{{" not in page and "{%" not in page
    first_prompt = re.search(r'<div class="clip"><p>([^<]+)</p>', page)
    assert first_prompt is not None and "moving" in first_prompt[1]


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_more(short_demo: DemoResult) -> None:
    before = (short_demo.out / "run" / "metrics.jsonl").read_text()
    again = run_demo(short_demo.out, prompts=4, quiet=True, overrides=SHORT)
    assert (short_demo.out / "run" / "metrics.jsonl").read_text() == before
    for row in ("teacher", "undistilled", "student"):
        assert again.metrics[row] == short_demo.metrics[row]


def test_an_unwritable_place_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file"):
        run_demo(tmp_path / "file" / "demo", quiet=True)
