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
    config = _shipped(hub_id)
    if config is None:
        return None
    return {key: value for key, value in config.items() if not key.startswith("_")}


def known_network_class(hub_id: str) -> str | None:
    """The class of the transformer in diffusers; None as for ``known_transformer_config``."""
    config = _shipped(hub_id)
    return None if config is None else str(config["_class_name"])


def _shipped(hub_id: str) -> dict[str, Any] | None:
    """The shipped file of a hub id."""
    names = known_hub_ids()
    name = next((each for each in (hub_id, f"{hub_id}-Diffusers") if each in names), None)
    if name is None:
        return None
    file = files("lightx2v_sgmd.families.sources") / "configs" / f"{name.replace('/', '--')}.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def known_hub_ids(network_class: str | None = None) -> list[str]:
    """Every hub id whose configuration is shipped, sorted.

    Args:
        network_class: Only those whose transformer is of this class of diffusers.
    """
    folder = files("lightx2v_sgmd.families.sources") / "configs"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".json"))
    ids = [name.removesuffix(".json").replace("--", "/", 1) for name in names]
    if network_class is None:
        return ids
    return [name for name in ids if known_network_class(name) == network_class]
