"""Every format inherits the layout of a whole network, which an adapter format lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightx2v_sgmd.families.wan.opening import open_wan
from weights.formats.base import NetworkFormat
from weights.formats.registry import FORMATS

NETWORKS = [format for format in FORMATS.values() if isinstance(format, NetworkFormat)]
NAME = "blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize("format", NETWORKS, ids=lambda format: format.name)
def test_a_layout_has_the_precision_that_was_asked_for(format: NetworkFormat) -> None:
    model = open_wan("sprites")
    assert format.layout("fp16", model=model).stored_dtype(NAME) == torch.float16
    in_bf16 = format.layout("bf16", model=model)
    assert in_bf16.stored_dtype(NAME) == torch.bfloat16
    assert in_bf16.stored_name(NAME) == format.stored_names()(NAME)


def test_names_differ_where_programs_differ() -> None:
    names = {format.name: format.stored_names()(NAME) for format in NETWORKS}
    assert names["diffusers"] == NAME
    assert names["wan"] == "blocks.0.self_attn.q.weight" and names["wan"] in names["comfyui"]


def test_adapters_are_no_whole_network() -> None:
    with pytest.raises(NotImplementedError, match="lora does not store a whole network"):
        FORMATS["lora"].layout("bf16")


def test_a_format_leaves_the_network_to_the_teacher() -> None:
    model = open_wan("sprites")
    assert FORMATS["comfyui"].open_model(Path("no folder"), lambda: model) is model
