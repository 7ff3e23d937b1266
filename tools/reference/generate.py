"""Writes docs/reference/generate.md from the options of a generation.

python -m tools.reference.generate            # writes the page
python -m tools.reference.generate --check    # says if it is out of date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from infer.options import GenerateOptions, Options, choices_of, flag_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "generate.md"
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
    lines = ["| option | field | values | default | meaning |", "|---|---|---|---|---|"]
    for item in items:
        flag = flag_of(item.name, item.metadata["flag"])
        cells = (f"`{flag}`", f"`{item.name}`", _values(item), _default(item))
        text = " | ".join([*cells, item.metadata["meaning"]])
        lines.append(f"| {text} |".replace("DIR|none", "DIR\\|none"))
    return "\n".join(lines) + "\n"


def page() -> str:
    """The text of docs/reference/generate.md."""
    engine = {item.name for item in fields(Options)}
    videos = [item for item in fields(GenerateOptions) if item.name not in engine]
    parts = (INTRODUCTION, "## Videos\n", _table(videos), "## Engine\n", _table(fields(Options)))
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, or checks it; the exit code is 1 if it is out of date."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(arguments)
    text = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    if args.check:
        print(f"{PAGE} is out of date; run python -m tools.reference.generate")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
