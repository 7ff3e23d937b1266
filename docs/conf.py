"""Settings of Sphinx, which builds the documentation: `make docs` writes build/site."""

from importlib import metadata

project = "lightx2v-sgmd"
release = metadata.version("lightx2v-sgmd")
project_copyright = "the lightx2v-sgmd contributors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path: list[str] = []
