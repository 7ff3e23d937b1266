"""Encoders whose blocks stay in their file give the same bits as those in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import UMT5EncoderModel

from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.t5_streaming import PROMPTS_AT_ONCE, StreamedT5
from tests.t5_tokenizer import WORDS
from tests.tiny import make_tiny_cogvideox, make_tiny_wan
from tests.tiny_sd3 import make_tiny_sd3
from tools.models.wan_folder import make_tokenizer, text_encoder_config

PROMPTS = ["a red circle moving left", "", "two blue squares"]


def compared(whole: list[Embedding], streamed: list[Embedding]) -> None:
    for one, other in zip(whole, streamed, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_umt5_in_its_file_gives_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_tiny_wan(tmp_path / "model")
    config = text_encoder_config(len(make_tokenizer(WORDS)), 16, 3, 2)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    model = open_model(str(folder))
    whole = model.load_text_encoder(dtype)
    streamed = model.load_text_encoder(dtype, stream=True)
    assert (whole.prompts_at_once, streamed.prompts_at_once) == (1, PROMPTS_AT_ONCE)
    compared(whole.encode(PROMPTS), streamed.encode(PROMPTS))
    compared(whole.encode(PROMPTS[:1]), streamed.encode(PROMPTS[:1]))  # again, from the file
    inner = streamed.network  # type: ignore[attr-defined]
    assert isinstance(inner, StreamedT5)
    held = [p for p in inner._network.parameters() if p.device.type != "meta"]
    assert sum(p.numel() for p in held) == inner.config.d_model  # the last norm


@pytest.mark.parametrize("make", [make_tiny_cogvideox, make_tiny_sd3])
def test_t5_of_other_families_in_its_file_gives_the_same_bits(make: object, tmp_path: Path) -> None:
    folder = make(tmp_path / "model")  # type: ignore[operator]
    model = open_model(str(folder))
    whole = model.load_text_encoder(torch.float32)
    streamed = model.load_text_encoder(torch.float32, stream=True)
    assert streamed.prompts_at_once == PROMPTS_AT_ONCE
    compared(whole.encode(PROMPTS), streamed.encode(PROMPTS))
