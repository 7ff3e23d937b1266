"""The parts of every report: the style, escaped text, embedded videos and plots."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.pages import COLOURS, LINE, SOFT, empty_figure, figure_uri, video_uri


def test_a_figure_is_svg_with_text_and_the_same_each_time() -> None:
    def drawn() -> str:
        figure = empty_figure(4, 2)
        figure.axes[0].plot([0, 1], [1, 2], color=COLOURS[0])
        figure.axes[0].set_xlabel("iteration <1>")
        return figure_uri(figure)

    head, content = drawn().split(",")
    svg = base64.b64decode(content).decode()
    assert head == "data:image/svg+xml;base64" and "<svg" in svg and COLOURS[0] in svg
    assert "iteration &lt;1&gt;" in svg and drawn() == f"{head},{content}"


def test_a_video_is_embedded(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\x00\x01video")
    head, content = video_uri(tmp_path / "a.mp4").split(",")
    assert head == "data:video/mp4;base64" and base64.b64decode(content) == b"\x00\x01video"


@pytest.mark.parametrize("colour", [SOFT, LINE, COLOURS[0]])
def test_the_plots_have_the_colours_of_the_page(colour: str) -> None:
    style = files("lightx2v_sgmd").joinpath("assets/page.html.j2").read_text(encoding="utf-8")
    assert colour in style
