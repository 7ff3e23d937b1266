"""Rank and alpha as headers and PEFT's configuration state them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.families.lora.settings import read_settings, scale_in
from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.system.errors import UserError

pytest.importorskip("peft")


def settings(folder: Path, metadata: dict[str, str], config: Any = None) -> Any:
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return read_settings(folder / "adapter_model.safetensors", Header({}, metadata))


def test_where_the_scale_stands(tmp_path: Path) -> None:
    assert settings(tmp_path, {}) is None and scale_in(None, ("a",), 4) == 1
    kohya = settings(tmp_path, {"ss_network_alpha": "2.0"})
    assert scale_in(kohya, ("a",), 4) == 0.5
    assert settings(tmp_path, {"ss_network_alpha": "None"}) is None
    for start in ("transformer.", "unet."):  # diffusers' names of the network
        told = json.dumps({f"{start}r": 4, f"{start}lora_alpha": 8})
        assert scale_in(settings(tmp_path, {"lora_adapter_metadata": told}), ("a",), 4) == 2
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"b": 4}, "target_modules": ".*"}
    peft = settings(tmp_path, {}, config)
    assert (scale_in(peft, ("a",), 4), scale_in(peft, ("x.b",), 4)) == (2, 1)
    text = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 4, "use_rslora": True})
    # The header counts before the file beside it.
    assert scale_in(settings(tmp_path, {"lora_adapter_metadata": text}), ("a",), 4) == 2


@pytest.mark.parametrize(
    ("metadata", "config", "match"),
    [
        ({"ss_network_alpha": "-1"}, None, "ss_network_alpha is -1, which is no alpha"),
        ({"lora_adapter_metadata": "{"}, None, "lora_adapter_metadata cannot be read"),
        ({"lora_adapter_metadata": '{"r": 4}'}, None, "lora_alpha"),
        ({}, {"peft_type": "LOHA", "r": 4}, "describes a LOHA adapter, which is not supported"),
        ({}, {"r": 4, "lora_alpha": 4, "use_dora": True}, "is a DoRA file .adapter_config.json"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, metadata: dict[str, str], config: Any, match: str
) -> None:
    with pytest.raises(UserError, match=match):
        settings(tmp_path, metadata, config)
