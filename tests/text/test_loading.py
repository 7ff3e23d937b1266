"""A text encoder that the memory does not hold is read block by block, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.t5_streaming import PROMPTS_AT_ONCE
from lightx2v_sgmd.system import host_memory
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.loading import encoder_gib, encoder_parameters, load_encoder
from tests.tiny_sd3 import make_tiny_sd3

CPU = torch.device("cpu")


def free(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    memory = gib + host_memory.SPARED_GIB
    monkeypatch.setattr(host_memory, "host_memory_gib", lambda: (memory, memory))


def test_umt5_xxl_takes_less_than_a_tenth_of_its_size() -> None:
    whole, streamed = encoder_gib(open_model("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), torch.bfloat16)
    assert 10.5 < whole < 10.7 and 0.7 < streamed < 1.3


def test_the_memory_decides_how_it_is_loaded(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = open_model(str(tiny_teacher))
    assert load_encoder(model, torch.float32, CPU).prompts_at_once == 1
    assert load_encoder(model, torch.float32, CPU, stream=True).prompts_at_once > 1
    for whole, streamed, at_once in ((1.0, 1.0, 1), (9.0, 1.0, PROMPTS_AT_ONCE)):
        sizes = (whole, streamed)
        monkeypatch.setattr("lightx2v_sgmd.text.loading.encoder_gib", lambda m, d, s=sizes: s)
        free(monkeypatch, 2.0)
        loaded = load_encoder(model, torch.float32, CPU, quiet=False)
        assert loaded.prompts_at_once == at_once
    assert "text encoder: 9 GiB are read block by block" in capsys.readouterr().err
    free(monkeypatch, 0.5)
    with pytest.raises(UserError, match=r"encoding prompts: needs about 1 GiB .* 0\.5 GiB are av"):
        load_encoder(model, torch.float32, CPU)


def test_encoders_beside_t5_stay_in_memory(tmp_path: Path) -> None:
    encoders = open_model(str(make_tiny_sd3(tmp_path / "sd3"))).build_text_encoder()
    whole, streamed = encoder_parameters(encoders)
    clip = sum(p.numel() for name in list(encoders)[:2] for p in encoders[name].parameters())
    assert clip < streamed < clip + whole
