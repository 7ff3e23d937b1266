"""A real browser for tests of pages: Chromium, driven by Playwright.

It reaches addresses of this machine alone, and keeps its profile in a temporary folder. Tests that
need it are skipped, with the reason, where Playwright or Chromium is missing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (
    "--no-sandbox",  # Chromium refuses to run as root otherwise
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
)
WAIT_MS = 300_000
"""How long an action waits for the page; only a hanging test gets so far."""


def opened(browser: Any, file: Path) -> tuple[Any, list[str]]:
    """A report that lies on the disk, opened wide and narrow: nothing is wider than the window.

    Returns:
        The page, wide, once all its videos can be played; and its errors, which may still grow.
    """
    page = browser.new_page(viewport={"width": 375, "height": 720})
    page.set_default_timeout(WAIT_MS)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(file.resolve().as_uri())
    page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState > 1)")
    fits = "document.documentElement.scrollWidth <= window.innerWidth"
    assert page.evaluate(fits)
    page.set_viewport_size({"width": 1280, "height": 2400})
    assert page.evaluate(fits)
    return page, problems


@contextmanager
def chromium() -> Iterator[Any]:
    """A running Chromium, Playwright's ``Browser``; skips the test if there is none."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright (pip install playwright)"
    )
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as home, sync_api.sync_playwright() as playwright:
        environment = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
        browser = playwright.chromium.launch(
            executable_path=path,
            args=list(ARGUMENTS),
            env=environment,
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
            timeout=WAIT_MS,
        )
        try:
            yield browser
        finally:
            browser.close()
