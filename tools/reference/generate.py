"""Writes docs/reference/generate.md from the options of a generation.

python -m tools.reference.generate            # writes the page
python -m tools.reference.generate --check    # says if it is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from infer.options import GenerateOptions, Options, choices_of, flag_of
from tools.reference.pages import FOLDER, table, write

PAGE = FOLDER / "generate.md"
INTRODUCTION = """\
# The options of generate

<!-- Written by python -m tools.reference.generate from infer/options.py. -->

`lightx2v-sgmd generate --weights WEIGHTS (--prompt TEXT | --prompts FILE) --out PATH` takes these
options. In Python they are the fields of `infer.GenerateOptions`, and those of the engine alone are
the fields of `infer.Options`:

```python
from infer import GenerateOptions, Options
from lightx2v_sgmd import generate, load_student

generate("student", "a red circle", "red.mp4", GenerateOptions(seed=3, num_frames=17))
video = load_student("student", Options(device="cpu")).generate("a red circle", seed=3)
```
"""


def _values(item: Field[Any]) -> str:
    about = item.metadata
    if choices := choices_of(about["kind"]):
        return " or ".join(f"`{choice}`" for choice in choices)
    if about["kind"] is bool:
        return "on or off"
    return f"`{about['metavar']}`"


def _default(item: Field[Any]) -> str:
    if isinstance(item.default, bool):
        return "on" if item.default else "off"
    return "" if item.default in (None, ()) else f"`{item.default}`"


def _table(items: Sequence[Field[Any]]) -> str:
    rows = []
    for item in items:
        flag = flag_of(item.name, item.metadata["flag"])
        cells = (f"`{flag}`", f"`{item.name}`", _values(item), _default(item))
        rows.append((*cells, item.metadata["meaning"]))
    return table(("option", "field", "values", "default", "meaning"), rows)


def page() -> str:
    """The text of docs/reference/generate.md."""
    engine = {item.name for item in fields(Options)}
    videos = [item for item in fields(GenerateOptions) if item.name not in engine]
    parts = (INTRODUCTION, "## Videos\n", _table(videos), "## Engine\n", _table(fields(Options)))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(write(PAGE, page(), __doc__))
