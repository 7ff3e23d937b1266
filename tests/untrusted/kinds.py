"""The shape of a row in the tables of hostile folders, and contents that many rows use.

``CODE`` is put into every folder, so that anything that is run leaves a trace that the audit sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Base = Literal[
    "teacher",
    "original",
    "vision",
    "export",
    "lora",
    "run",
    "torch_save",
    "scaled",
    "cogvideox",
    "sd3",
    "pair",
    "image",
    "ti2v",
    "sdxl",
    "clip",
]
CODE = "import os\nos.system('touch executed')\nclass Evil: pass\n"
DEEP = "[" * 100_000
AUTO_MAP = {key: "evil.Evil" for key in ("AutoConfig", "AutoModel", "AutoTokenizer")}
TOKENIZER_MAP = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}


@dataclass(frozen=True)
class Hostile:
    """One kind of hostile folder.

    Attributes:
        name: For messages.
        base: The good folder that is changed.
        damage: Changes a copy of it.
        refused: True if the folder must be refused; otherwise what was changed has no effect.
    """

    name: str
    base: Base
    damage: Callable[[Path], None]
    refused: bool = True


def kinds(base: Base, refused: bool, **damages: Callable[[Path], None]) -> list[Hostile]:
    """Rows of changes to one good folder."""
    return [Hostile(f"{base}_{name}", base, damage, refused) for name, damage in damages.items()]
