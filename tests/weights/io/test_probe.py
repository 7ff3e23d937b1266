"""A probe's memory: what its network kept is free at once, though it is part of cycles."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightx2v_sgmd.families.wan.opening import open_wan
from tests.tiny import make_tiny_wan
from weights.export_spec import ExportSpec
from weights.formats.registry import FORMATS
from weights.io.probe import Probe


@pytest.mark.parametrize("keep", [False, True])
def test_a_released_probe_holds_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """Exporting adapters evaluates several networks in turn; two did not fit into the memory."""
    model = open_wan(make_tiny_wan(tmp_path / "model"))
    state = model.load_transformer().state_dict()
    kept: list[weakref.ref[Tensor]] = []
    parameter = torch.nn.Parameter

    def seen(data: Tensor, requires_grad: bool = True) -> torch.nn.Parameter:
        made = parameter(data, requires_grad=requires_grad)
        if not made.is_meta:
            kept.append(weakref.ref(made))
        return made

    probe = Probe(model, lambda name: torch.float32, lambda name: state[name], keep)
    monkeypatch.setattr(torch.nn, "Parameter", seen)
    gc.disable()
    try:
        first = probe.forward()
        assert len(kept) == len(state)
        assert {ref() is not None for ref in kept} == {keep}
        assert torch.equal(probe.forward(), first)
        probe.release()
        assert {ref() is not None for ref in kept} == {False}
    finally:
        gc.enable()


def test_the_memory_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs come and go; the progress bar counts on one answer."""
    answers = iter([False, True])
    monkeypatch.setattr("weights.export_spec.fits_in_memory", lambda model: next(answers))
    source: Any = SimpleNamespace(model=None)
    spec = ExportSpec(source, FORMATS["lora"], "bf16", Path("out"))
    assert [spec.keeps_network, spec.keeps_network] == [False, False]
