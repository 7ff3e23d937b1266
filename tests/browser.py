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


@contextmanager
def chromium() -> Iterator[Any]:
    """A running Chromium, Playwright's ``Browser``; skips the test if there is none."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright (pip install playwright)"
    )
    executable = next((path for name in NAMES if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as home, sync_api.sync_playwright() as playwright:
        environment = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
        browser = playwright.chromium.launch(
            executable_path=executable,
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
