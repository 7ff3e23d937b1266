"""Network configurations of published teachers, so that a job can be examined without its weights.

``configs/<owner>--<name>.json`` holds the ``transformer/config.json`` of that hub id. The
same models are on the hub in the original layout, without ``-Diffusers`` at the end of the id.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def known_transformer_config(hub_id: str) -> dict[str, Any] | None:
    """The transformer's configuration for a hub id such as ``Wan-AI/Wan2.1-T2V-14B-Diffusers``.

    The result is None for an id without a shipped configuration (see ``known_hub_ids``). An id
    without ``-Diffusers`` is the same network in its original layout.
    """
    if not hub_id.endswith("-Diffusers"):
        hub_id = f"{hub_id}-Diffusers"
    if hub_id not in known_hub_ids():
        return None
    file = files("lightx2v_sgmd.families") / "configs" / f"{hub_id.replace('/', '--')}.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if not key.startswith("_")}


def known_hub_ids() -> list[str]:
    """Every hub id whose configuration is shipped, sorted."""
    folder = files("lightx2v_sgmd.families") / "configs"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".json"))
    return [name.removesuffix(".json").replace("--", "/", 1) for name in names]
