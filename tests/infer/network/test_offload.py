"""Parts that take turns on a GPU, rehearsed on a CPU: what is copied, when, and what is dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from infer.network import offload
from infer.network.offload import HostWeights, PartSwitcher, weight_bytes
from lightx2v_sgmd.families.wan.opening import open_wan
from tests.infer.metering import DeviceMeter
from tests.students import load_student

CPU = torch.device("cpu")


def as_a_gpu(device: torch.device = CPU) -> PartSwitcher:
    """Parts are kept when they leave, as on a GPU."""
    parts = PartSwitcher(device, alternate=True)
    parts._keeps = True
    return parts


def loads(log: list[str], name: str) -> Callable[[], nn.Module]:
    def load() -> nn.Module:
        log.append(name)
        torch.manual_seed(0)
        return nn.Linear(3, 5)

    return load


@pytest.mark.slow
def test_weights_go_to_the_host_once_and_only_come_back() -> None:
    log: list[str] = []
    parts = as_a_gpu()
    first: Any = parts.get("a", loads(log, "a"))
    weights = {name: p.clone() for name, p in first.named_parameters()}
    parameters = list(first.parameters())
    places = []
    for _ in range(3):
        parts.get("b", loads(log, "b"))
        places.append(first.weight.data_ptr())
        assert not parts.present("a") and parts.present("b")
        assert parts.get("a", loads(log, "a")) is first
        copied = first.weight.data_ptr()  # type: ignore[operator]
        assert copied != places[-1]  # a copy, as on a GPU
    assert log == ["a", "b"]
    assert len(set(places)) == 1  # the host's weights are where they were
    assert list(first.parameters()) == parameters  # compiled code knows them
    for name, p in first.named_parameters():
        assert torch.equal(p, weights[name])


def test_nothing_is_copied_back_from_the_device() -> None:
    """On the meta device, which stands for a GPU: only the first leave copies to the host."""
    module = nn.Linear(100, 100, device="meta")
    size = sum(p.numel() * p.itemsize for p in module.parameters())
    with DeviceMeter() as meter:
        host = HostWeights(module)
        assert meter.copied == {("meta", "cpu"): size}
        for _ in range(2):
            host.to_host()
            assert {p.device.type for p in module.parameters()} == {"cpu"}
            host.to_device()
            assert {p.device.type for p in module.parameters()} == {"meta"}
        assert meter.copied == {("meta", "cpu"): size, ("cpu", "meta"): 2 * size}


@pytest.mark.slow
def test_what_is_released_or_has_no_room_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    parts = as_a_gpu()
    parts.get("a", loads(log, "a"))
    parts.release("a")
    assert "a" in parts
    parts.get("b", loads(log, "b"))
    assert "a" not in parts
    monkeypatch.setattr(offload, "available_bytes", lambda: 4 * 2**30)
    parts.get("a", loads(log, "a"))
    assert "b" not in parts
    monkeypatch.setattr(offload, "available_bytes", lambda: 4 * 2**30 + 1024)
    parts.get("b", loads(log, "b"))
    assert "a" in parts and log == ["a", "b", "a", "b"]
    parts.drop("a")
    parts.get("a", loads(log, "a"))
    assert log[4:] == ["a"]


def test_parts_that_do_not_alternate_stay() -> None:
    log: list[str] = []
    parts = PartSwitcher(CPU, alternate=False)
    for name in "abab":
        parts.get(name, loads(log, name))
        parts.release(name)
    assert log == ["a", "b"] and parts.present("a") and parts.present("b")


def test_one_that_stays_elsewhere_sends_nothing_away() -> None:
    log: list[str] = []
    parts = as_a_gpu()
    parts.get("a", loads(log, "a"))
    parts.get("on another device", loads(log, "c"), moves=False)
    assert parts.present("a")
    parts.release("on another device")
    assert "on another device" not in parts


def test_quantised_weights_travel_as_the_tensors_they_are_made_of() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    module = nn.Sequential(nn.Linear(64, 32))
    torchao.quantize_(module, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    x = torch.randn(2, 64)
    with torch.no_grad():
        expected = module(x)
        host = HostWeights(module)
        for move in (host.to_host, host.to_device):
            move()
            assert type(module[0].weight.data).__module__.startswith("torchao")
            assert torch.equal(module(x), expected)
    assert weight_bytes(module) < 4 * 32 * 64


@pytest.mark.slow
def test_a_student_in_turns_makes_the_same_video(
    shared_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is read once, whatever the number of videos, and then only copied."""
    expected = load_student(shared_student, device="cpu").generate("a red circle", 3)
    student = load_student(shared_student, device="cpu", one_at_a_time=True)
    student.parts._keeps = True
    log: list[str] = []
    for name in ("load_transformer", "load_vae", "load_text_encoder"):
        original = getattr(type(student.model), name)

        def load(*args: Any, made: Any = original, called: str = name, **kwargs: Any) -> Any:
            log.append(called)
            return made(*args, **kwargs)

        monkeypatch.setattr(type(student.model), name, load)
    for prompt in ("a red circle", "a blue square", "a red circle"):
        made = student.generate(prompt, 3)
        assert sum(map(student.parts.present, ("transformer", "vae", "text_encoder"))) == 1
    assert log == ["load_text_encoder", "load_transformer", "load_vae"]
    torch.testing.assert_close(made.latents, expected.latents, atol=1e-5, rtol=0)
    assert (made.frames == expected.frames).all()


def test_pinned_memory_is_what_was_asked_for() -> None:
    model = open_wan("sprites")
    network = model.load_transformer(torch.bfloat16)
    exact = sum(p.numel() * p.itemsize for p in network.parameters())
    taken = HostWeights(network)._memory.numel()
    assert exact <= taken == weight_bytes(network) < 1.2 * exact
