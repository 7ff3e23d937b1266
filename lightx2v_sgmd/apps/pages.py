"""Builds the HTML reports: one file each, which needs no network and no file beside it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = (
    "#2f6fed",
    "#d9480f",
    "#11845b",
    "#8a3ffc",
    "#c2255c",
    "#0b7285",
    "#946200",
    "#5b6474",
)
"""Colours of a plot's curves, in the order of use; the first is the accent of the pages."""
SOFT, LINE = "#5b6474", "#dfe3ea"
"""Colours of secondary text and of rules; ``assets/page.html.j2`` has the same."""


def render_page(template: str, **values: Any) -> str:
    """Fills a template of ``assets/``; every page extends ``page.html.j2``, which has the style.

    Args:
        template: The template's file name.
        values: The template's variables; text is escaped.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("lightx2v_sgmd", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def video_uri(video: Path) -> str:
    """An mp4 file as a ``data:`` address."""
    return "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode("ascii")


def image_uri(image: Path) -> str:
    """A PNG file as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode("ascii")


def figure_uri(figure: Figure) -> str:
    """A figure as SVG in a ``data:`` address; equal figures give equal text."""
    import matplotlib

    file = io.StringIO()
    # Text stays text, in the reader's own font; the salt makes the names inside reproducible.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lightx2v-sgmd"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = base64.b64encode(file.getvalue().encode()).decode("ascii")
    return "data:image/svg+xml;base64," + text


def empty_figure(width_in: float, height_in: float) -> Figure:
    """A figure with one plot in the pages' style: two axes, soft labels, no frame."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures in a global list

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=SOFT, labelsize=7, length=2)
    axes.xaxis.label.set(color=SOFT, size=7)
    axes.margins(x=0.02)
    return figure
