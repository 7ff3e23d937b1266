"""The share of a cluster that an engine takes, and the refusal where Ray is missing."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infer.cluster.joining import engine_count, join, joined, share_of_machine
from lightx2v_sgmd.system.errors import UserError


def ray_with(**resources: float) -> Any:
    return SimpleNamespace(cluster_resources=lambda: resources)


def test_an_engine_takes_a_gpu_or_else_a_cpu() -> None:
    gpus, none = ray_with(CPU=64.0, GPU=8.0), ray_with(CPU=6.0)
    for ray, device, gpu, engines in (
        (gpus, None, 1, 8),
        (gpus, "cuda", 1, 8),
        (gpus, "cpu", 0, 64),
        (none, None, 0, 6),
        (ray_with(), None, 0, 1),
    ):
        share = share_of_machine(ray, device)
        assert (share["num_gpus"], engine_count(ray, share)) == (gpu, engines)


@pytest.mark.parametrize("address", [None, "first:6379"])
def test_no_cluster_is_joined_that_was_not_named(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    asked: dict[str, Any] = {}
    ray = ModuleType("ray")
    ray.__dict__.update(
        init=lambda **options: asked.update(options),
        serve=ModuleType("ray.serve"),
        __spec__=ModuleSpec("ray", None),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert join("--ray") is ray
    assert asked["address"] == (address or "local")
    del ray.__dict__["serve"]  # Ray without its extra
    with pytest.raises(UserError, match=r"Ray Serve cannot be imported"):
        join("--ray")


@pytest.mark.parametrize("before", [False, True])
def test_a_cluster_is_left_unless_the_caller_had_joined_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    calls: list[str] = []
    ray = ModuleType("ray")
    ray.__dict__.update(
        init=lambda **options: calls.append(options["address"]),
        is_initialized=lambda: before,
        shutdown=lambda: calls.append("left"),
        __spec__=ModuleSpec("ray", None),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    with joined("--ray", "local") as found:
        assert found is ray
        print("a node died")
    assert calls == ["local"] + ["left"] * (not before)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "a node died\n")  # stdout is for results


def test_a_missing_ray_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray: needs ray.*pip install 'lightx2v-sgmd\[ray\]'"):
        join("--ray")
