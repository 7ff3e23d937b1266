"""Fixtures that several folders of tests use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightx2v_sgmd.models.wan import open_wan
from tests.tiny import make_tiny_wan


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Wan model that heeds its text; not to be written to.

    As it is drawn, the text changes its output by less than a thousandth. What guidance adds, and
    with it the Fisher term, would be a small difference of large numbers: mostly rounding.
    """
    folder = make_tiny_wan(tmp_path_factory.mktemp("teacher") / "tiny")
    transformer = open_wan(folder).load_transformer()
    with torch.no_grad():
        for block in transformer.blocks:
            block.attn2.to_v.weight *= 10
            block.attn2.to_out[0].weight *= 10
    transformer.save_pretrained(folder / "transformer")
    return folder
