"""The page in a real browser: ten pairs judged by keys alone, a reload, sending, and the report."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import uvicorn

from infer.serve.listening import listen, url_of
from lightx2v_sgmd.apps.study.api import make_app
from lightx2v_sgmd.apps.study.collecting import page_files
from lightx2v_sgmd.apps.study.reporting import report
from lightx2v_sgmd.apps.study.store import VoteStore
from lightx2v_sgmd.apps.study.votes import parse_submission
from tests.apps.study.conftest import CATCH, PAIRS, MadeStudy
from tests.browser import WAIT_MS, chromium

ALL = PAIRS + CATCH
KEYS = {"left": "ArrowLeft", "tie": "ArrowDown", "right": "ArrowRight"}


@contextmanager
def collector(made: MadeStudy, store: VoteStore) -> Iterator[str]:
    """The study's server in a thread, and its address."""
    files = page_files(made.folder / "study", made.key)
    app = make_app(made.key, files, store, "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with closing(listen("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"{url_of('127.0.0.1', listening)}/"
        finally:
            server.should_exit = True
            thread.join()


def comes_true(page: Any, expression: str) -> bool:
    """Waits for something in the page, whose policy lets no test run code of its own in it."""
    for _ in range(400):
        if page.evaluate(expression):
            return True
        page.wait_for_timeout(50)
    return False


def pauses_at_one_moment(page: Any) -> bool:
    """True if both videos play, and show the same moment once they are paused by the key."""
    if not comes_true(page, "videos.every(v => v.currentTime > 0)"):
        return False
    page.keyboard.press("Space")
    return comes_true(
        page,
        "videos.every(v => v.paused && !v.seeking)"
        " && Math.abs(videos[0].currentTime - videos[1].currentTime) < 0.03",
    )


def start_and_pause(page: Any, address: str) -> None:
    """Begins as anna; reloads the page if a busy browser has not loaded a video."""
    start(page, address, "anna")
    for _ in range(3):
        page.locator("#where", has_text="Pair 1 of").wait_for()
        if pauses_at_one_moment(page):
            return
        page.reload()
    pytest.fail("the videos do not play, or do not stop at one moment")


def vote(page: Any, made: MadeStudy, at: int) -> None:
    """Prefers the moving video and the unspoiled one, by keys; sees no difference in the text."""
    page.locator("#where", has_text=f"Pair {at} of").wait_for()
    name = page.evaluate("document.getElementById('left').src.split('/').pop()")
    pair = next(pair for pair in made.key.pairs if name in pair.videos)
    better = "left" if name == getattr(pair, pair.a or pair.good or "") else "right"
    for question in made.key.questions:
        page.keyboard.press(KEYS["tie" if question.name == "text" else better])
    page.keyboard.press("Enter")


def start(page: Any, address: str, rater: str) -> None:
    page.goto(address)
    page.fill("#rater", rater)
    page.keyboard.press("Enter")


@pytest.mark.slow
def test_ten_pairs_are_judged_sent_and_reported(made: MadeStudy, tmp_path: Path) -> None:
    votes = tmp_path / "votes.sqlite"
    problems: list[str] = []
    with chromium() as browser, closing(VoteStore(votes)) as store:
        context = browser.new_context(accept_downloads=True)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        with collector(made, store) as address:
            start_and_pause(page, address)
            page.keyboard.press("Enter")  # goes nowhere: nothing is answered
            for at in range(1, 6):
                vote(page, made, at)
            page.keyboard.press("ArrowDown")
            page.reload()
            page.locator("#where", has_text="Pair 6 of").wait_for()
            kept = "document.querySelector('[aria-checked=true]').dataset.choice"
            assert page.evaluate(kept) == "tie"
            page.keyboard.press("ArrowUp")  # back to the first question
            for at in range(6, ALL + 1):
                vote(page, made, at)
            page.get_by_text("Your answers have been received").wait_for()
            # A name with invisible characters would be refused when everything is answered.
            odd = page.evaluate("plain(' \\u200ban\\u00a0na\\ud83d\\n')")
            assert odd == "an na" and odd.isprintable()
            # Each rater has an order and sides of his own, always the same ones.
            anna, again, ben = (
                page.evaluate("name => arranged(name).map(pair => [pair.id, pair.left])", name)
                for name in ("anna", "anna", "ben")
            )
        assert anna == again != ben
        assert [pair for pair, _ in anna] != [pair for pair, _ in ben]
        assert sorted(pair for pair, _ in anna) == sorted(pair.id for pair in made.key.pairs)
        for arranged in (anna, ben):
            assert sum(left == "first" for _, left in arranged) == ALL // 2

        # The same page from a folder, without any server: its votes are a file.
        folder = (made.page / "index.html").as_uri()
        start(page, folder, "carl")
        for at in range(1, ALL + 1):
            vote(page, made, at)
        with page.expect_download() as waiting:
            page.click("#download")
        waiting.value.save_as(tmp_path / "carl.json")
    assert problems == []

    carl = parse_submission((tmp_path / "carl.json").read_text(), made.key)
    assert carl.rater == "carl" and len(carl.votes) == ALL
    found, text = report(
        [votes, tmp_path / "carl.json"], made.folder / "study" / "key.json", out=tmp_path / "out"
    )
    assert found["raters"] == {"counted": ["anna", "carl"], "unchecked": [], "left_out": []}
    for name, question in found["questions"].items():
        assert question["votes"] == 2 * PAIRS
        assert question["tie" if name == "text" else "win"]["mean"] == 1
    assert "100 % [100, 100]" in text
