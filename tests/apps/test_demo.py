"""The demo on the bundled teacher, made short, and the page that it writes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.demo import DemoResult, run_demo
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
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


SCRIPT = """
set -u
mount -t tmpfs -o size=2m tmpfs "$1" || exit 77
cd "$2" && exec "$3" -m tests.apps.full_disk "$1"
"""


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_report_is_written(tmp_path: Path) -> None:
    """A small file system, mounted where only this test sees it."""
    (tmp_path / "disk").mkdir()
    arguments = [str(tmp_path / "disk"), str(ROOT), sys.executable]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mounts without privileges here: {done.stderr.strip()}")
    *full, enough = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(full) == 4, done.stderr
    for answer in full:
        (line,) = answer["lines"]
        assert answer["code"] == 2 and ("disk is full" in line or "space left on the disk" in line)
        assert ".new" not in line and "report.html" not in answer["left"]
        assert not [name for name in answer["left"] if ".new" in name] and not answer["strange"]
    assert enough["code"] == 0 and not enough["strange"]
    assert {"report.html", "metrics.json", "contact_sheet.png"} <= enough["left"].keys()
    assert len([name for name in enough["left"] if name.endswith(".mp4")]) == 2 * 3
