"""The page in a real browser, used by keys alone, wide and narrow, light and dark."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

import uvicorn

from infer.serve.api.app import make_app
from infer.serve.api.guard import Guard
from infer.serve.api.reference import fingerprint
from infer.serve.backend import Backend
from infer.serve.listening import listen, url_of
from infer.serve.work.latent_colours import animation
from tests.browser import WAIT_MS, chromium
from tests.infer.serve.api.test_reference import picture
from tests.infer.serve.standin import SERVED, StandIn, finish, make_backend, make_maker


@contextmanager
def server(backend: Backend, token: str | None = None) -> Iterator[str]:
    """The server's API in a thread, and its address."""
    app = Guard(make_app(backend), token, "127.0.0.1", backend.most_body_bytes)
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with closing(listen("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of("127.0.0.1", listening)
        finally:
            running.should_exit = True
            thread.join()


def make_waiting(backend: Backend) -> None:
    """Makes the videos that wait."""
    ours, theirs = Pipe()
    maker = make_maker(backend, StandIn(), theirs)
    jobs = backend.store.claim("w", lambda job: 4)
    maker._make(jobs)
    ours.close()


def until(page: Any, condition: str) -> None:
    """Waits for a condition; the browser's own wait would need ``eval``, which the page forbids."""
    end = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def check_layout(page: Any) -> None:
    """Nothing is wider than the window, and every button has a name."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for button in page.locator("button").all():
        assert button.get_attribute("aria-label") or button.inner_text().strip()


@pytest.mark.slow
def test_a_video_is_asked_for_seen_and_repeated_by_keys(tmp_path: Path) -> None:
    backend = make_backend(tmp_path / "data")
    with server(backend) as url, chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.set_default_timeout(WAIT_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        page.locator("#model", has_text="tiny").wait_for()
        page.locator("#prompt").focus()
        page.keyboard.type("a red circle")
        for _ in range(5):  # width, height, frames, seed, button
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        waiting = page.locator("#queue li", has_text="a red circle")
        waiting.wait_for()
        assert page.locator("#idle").is_hidden()
        (job,) = backend.store.claim("w", lambda job: 1)
        backend.results.show(job.id, animation(np.full((3, 8, 8, 3), 120, np.uint8), 8.0))
        assert backend.store.advance("w", [job.id], 40)
        picture = page.get_by_role("img", name="Preview of a red circle")
        picture.wait_for()
        assert page.get_by_text("in progress, 40 %").is_visible()
        check_layout(page)
        backend.store.release("w", died=False)
        make_waiting(backend)
        film = page.get_by_label("Video of a red circle")
        film.wait_for()
        until(page, "document.querySelector('#gallery video').videoWidth === 32")
        page.locator("#estimate", has_text="A video of this size takes about").wait_for()
        page.get_by_role("button", name="Make a red circle with another seed").press("Enter")
        waiting.wait_for()
        page.get_by_role("button", name="Cancel a red circle").press("Enter")
        waiting.wait_for(state="detached")
        assert len(backend.store.names()) == 1
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 360, "height": 700})
        check_layout(page)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
        assert problems == []


@pytest.mark.slow
def test_an_older_list_that_comes_late_changes_nothing(tmp_path: Path) -> None:
    """An item that is there stays as it is, and the focus on its button with it."""
    backend = make_backend(tmp_path / "data")
    held: list[tuple[Any, Any]] = []

    def hold_first(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append((route, route.fetch()))

    with server(backend) as url, chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        page.locator("#model", has_text="tiny").wait_for()
        page.fill("#prompt", "a red circle")
        page.route("**/v1/videos?limit=100", hold_first)
        while not held:  # a poll, whose answer is without the video
            page.wait_for_timeout(50)
        page.get_by_role("button", name="Make the video").click()
        cancel = page.get_by_role("button", name="Cancel a red circle")
        cancel.focus()
        item = page.locator("#queue li").element_handle()
        (route, response) = held[0]
        route.fulfill(response=response)
        page.wait_for_timeout(3000)  # some polls more
        assert item.evaluate("item => item.isConnected")
        assert page.evaluate("document.activeElement.ariaLabel") == "Cancel a red circle"


@pytest.mark.slow
def test_a_token_is_asked_for_and_refusals_are_said(tmp_path: Path) -> None:
    backend = make_backend(tmp_path / "data")
    token = "0123456789abcdef-token"
    with server(backend, token) as url, chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        page.locator("#said.bad", has_text="This server needs a token.").wait_for()
        page.get_by_label("Token of this server").fill("another")
        page.keyboard.press("Tab")
        page.locator("#said.bad", has_text="does not take this token").wait_for()
        page.get_by_label("Token of this server").fill(token)
        page.keyboard.press("Tab")
        page.locator("#model", has_text="tiny").wait_for()
        page.get_by_label("Prompt").fill("a fox")
        page.get_by_label("Width").fill("48000")
        page.get_by_role("button", name="Make the video").press("Enter")
        page.locator("#said.bad", has_text="width").wait_for()
        assert not backend.store.names()
        page.route("**/v1/**", lambda route: route.abort())
        page.locator("#said.bad", has_text="The server does not answer.").wait_for()
        page.unroute("**/v1/**")
        until(page, "document.getElementById('said').textContent === ''")


@pytest.mark.slow
def test_an_image_is_chosen_sent_and_used_again(tmp_path: Path) -> None:
    served = (replace(SERVED, name="text"), replace(SERVED, name="image", takes_image="always"))
    backend = make_backend(tmp_path / "data", served)
    content = picture()
    with server(backend) as url, chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        page.locator("#model", has_text="text").wait_for()
        image = page.get_by_label("Image that the video starts from")
        assert image.is_hidden()
        page.get_by_label("Weights").select_option("image")
        image.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": content})
        page.get_by_label("Prompt").fill("a red circle")
        page.get_by_role("button", name="Make the video").press("Enter")
        page.locator("#queue li").wait_for()
        finish(backend)
        page.get_by_role("button", name="Make a red circle with another seed").click()
        page.locator("#queue li").wait_for()
        jobs = backend.store.page(10, None, False)[0]
        assert [job.image for job in jobs] == [fingerprint(content)] * 2
        finish(backend)
        page.reload()  # the images of before are gone
        page.get_by_role("button", name="Make a red circle with another seed").nth(0).click()
        page.locator("#said.bad", has_text="does not keep the image").wait_for()


@pytest.mark.slow
def test_the_api_has_a_page(tmp_path: Path) -> None:
    backend = make_backend(tmp_path / "data")
    token = "0123456789abcdef-token"
    with server(backend, token) as url, chromium() as browser:
        page = browser.new_page(viewport={"width": 360, "height": 700}, color_scheme="dark")
        page.set_default_timeout(WAIT_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        page.get_by_role("link", name="The API of this server").press("Enter")
        page.get_by_text("This server needs a token.").wait_for()
        page.get_by_label("Token of this server").fill(token)
        page.keyboard.press("Tab")
        create = page.get_by_role("region", name="POST /v1/videos", exact=True)
        create.get_by_role("row", name="num_frames").first.wait_for()
        described = make_app(backend).openapi()
        wanted = {
            f"{verb.upper()} {path}" for path, one in described["paths"].items() for verb in one
        }
        assert wanted | set(described["components"]["schemas"]) == set(
            page.locator("h2").all_inner_texts()
        )
        check_layout(page)
        assert problems == []


@pytest.mark.slow
def test_images_are_shown_as_images(tmp_path: Path) -> None:
    rules = replace(SERVED.rules, images=True)
    images = replace(SERVED, name="images", trained=(32, 32, 1), fps=1.0, rules=rules)
    backend = make_backend(tmp_path / "data", (images, SERVED))
    with server(backend) as url, chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        page.get_by_role("heading", name="Images of images").wait_for()
        assert page.locator("#num_frames").is_hidden()
        assert page.locator("#against option").all_inner_texts() == ["nothing"]
        page.get_by_label("Prompt").fill("a red circle")
        page.get_by_role("button", name="Make the image").press("Enter")
        page.locator("#queue li").wait_for()
        (job,) = backend.store.claim("w", lambda job: 1)
        assert job.size == (32, 32, 1)
        backend.results.video(job.id, ".png").write_bytes(picture())
        assert backend.store.complete("w", job.id, 2.0, 1)
        page.get_by_role("img", name="Image of a red circle").wait_for()
        until(page, "document.querySelector('#gallery img').naturalWidth === 48")
        page.get_by_text("32x32, seed").wait_for()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download a red circle").press("Enter")
        assert download.value.suggested_filename == f"{job.id}.png"


@pytest.mark.slow
def test_two_weights_are_compared_side_by_side(tmp_path: Path) -> None:
    served = (replace(SERVED, name="new", loras=("anime",)), replace(SERVED, name="old"))
    backend = make_backend(tmp_path / "data", served)
    with server(backend) as url, chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.set_default_timeout(WAIT_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        page.get_by_label("Prompt").fill("a red circle")
        page.get_by_label("LoRA").select_option("anime")
        page.get_by_label("Compare with").select_option("old")
        page.get_by_role("button", name="Make the video").press("Enter")
        comparison = page.get_by_role("region", name="Comparison")
        comparison.get_by_text("waits").nth(1).wait_for()
        assert comparison.get_by_role("button", name="Play both").is_disabled()
        first, second = backend.store.page(10, None, False)[0]
        assert (first.model, first.lora, second.model, second.lora) == ("new", "anime", "old", None)
        assert (first.prompt, first.seed, first.size) == (second.prompt, second.seed, second.size)
        for _ in served:
            make_waiting(backend)
        for name in ("new", "old"):
            comparison.get_by_label(f"Video with {name}").wait_for()
        both = comparison.get_by_role("button", name="Play both")
        until(page, "!document.getElementById('both').disabled")
        both.press("Enter")
        playing = (
            "[...document.querySelectorAll('#pair video')].filter(film => !film.paused).length"
        )
        until(page, f"{playing} === 2")
        comparison.get_by_role("button", name="Pause both").press("Enter")
        check_layout(page)
        page.reload()  # the address names both videos
        page.get_by_label("Video with old").wait_for()
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 360, "height": 700})
        check_layout(page)
        page.get_by_role("button", name="Close the comparison").press("Enter")
        comparison.wait_for(state="hidden")
        again = page.get_by_role("button", name="Compare a red circle with old")
        again.press("Enter")  # both are there already: nothing is made
        comparison.get_by_label("Video with new").wait_for()
        assert len(backend.store.names()) == 2
        assert problems == []
