"""What an engine takes of a cluster, and the refusal where Ray is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from infer.cluster.joining import join, places, share_of_machine
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
        assert (share["num_gpus"], places(ray, share)) == (gpu, engines)


def test_a_missing_ray_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray: needs ray.*pip install 'lightx2v-sgmd\[ray\]'"):
        join("--ray")
