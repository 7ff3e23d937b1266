"""The page in a real browser: a run that goes on, light and dark, wide and narrow, and a token."""

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
from lightx2v_sgmd.apps.watch.api import make_app
from lightx2v_sgmd.apps.watch.reading import WatchedRun
from tests.apps.watch.conftest import write_line, write_samples
from tests.browser import WAIT_MS, chromium


@contextmanager
def watching(run: Path, token: str | None = None) -> Iterator[str]:
    """The page's server in a thread, and its address."""
    app = make_app(WatchedRun.open(run), token, "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with closing(listen("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of("127.0.0.1", listening)
        finally:
            server.should_exit = True
            thread.join()


def check_layout(page: Any) -> None:
    """Nothing is wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
def test_a_run_is_seen_going_on(run: Path) -> None:
    with watching(run) as url, chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.set_default_timeout(WAIT_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        page.get_by_text("Step 3 of 5, 2 s an iteration, 4 s left").wait_for()
        assert page.get_by_text("None so far.").is_visible()
        assert page.locator("#samples tr th").all_inner_texts() == ["Teacher", "Step 2"]
        assert page.locator("#prompts th").nth(1).inner_text() == "a red circle moving left"
        motion = page.locator("#curves figure", has_text="Motion of the samples")
        assert "now 0.2, teacher 0.25" in motion.inner_text()
        assert "learnt to move less" in motion.inner_text()
        assert motion.locator("line.teacher").count() == 1
        check_layout(page)
        write_line(run, 4)
        write_line(run, 5, warnings={"motion": "the samples move less than the teacher's"})
        write_samples(run, "step_000005", 200)
        page.get_by_text("Step 5 of 5, finished.").wait_for()
        page.get_by_text("Step 5, motion. the samples move less").wait_for()
        page.locator("#samples th", has_text="Step 5").wait_for()
        assert page.locator("#samples tr th").all_inner_texts() == ["Teacher", "Step 5", "Step 2"]
        page.locator("#samples video").first.wait_for()
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 375, "height": 720})
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == "rgb(20, 22, 26)"
        check_layout(page)
        assert problems == []


@pytest.mark.slow
def test_a_token_is_asked_for(run: Path) -> None:
    with watching(run, "correct horse battery staple"[:20].replace(" ", "-")) as url:
        with chromium() as browser:
            page = browser.new_page()
            page.set_default_timeout(WAIT_MS)
            page.goto(url)
            page.get_by_text("send the server's token").wait_for()
            assert page.locator("#samples tr").count() == 0
            page.locator("#token").fill("correct-horse-batter")
            page.keyboard.press("Enter")
            page.get_by_text("Step 3 of 5").wait_for()
            page.locator("#samples video").first.wait_for()
            assert page.locator("#token-row").is_hidden()
