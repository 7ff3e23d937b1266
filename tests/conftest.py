"""Fixtures that several folders of tests use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightx2v_sgmd.families.wan.opening import open_wan
from tests import devices
from tests.students import make_student
from tests.tiny import make_tiny_wan
from tests.tiny_sdxl import make_tiny_sdxl

LONGEST = (
    "distill/running/test_killing.py",
    "tools/test_gpu_check.py",
    "apps/comparison/test_compare.py",
    "apps/test_demo.py",
    "distill/running/test_resuming.py",
    "distill/test_pretraining.py",
    "parallel/zero3/test_strategy.py",
    "distill/planning/test_rank_memory.py",
    "distill/running/test_hosts.py",
    "distill/running/test_faults.py",
    "parallel/test_precision.py",
    "distill/running/test_launch.py",
)
"""The files that take minutes. They come first: a process that takes one last runs alone."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Brings the longest files forward, and leaves out the GPU tests where no GPU is seen."""
    folder = Path(__file__).parent
    rank = {folder / name: -place for place, name in enumerate(reversed(LONGEST), start=1)}
    items.sort(key=lambda item: rank.get(item.path, 0))
    if torch.cuda.is_available():
        if not devices.asks_for_gpu_tests(["-m", config.option.markexpr or ""]):
            raise pytest.UsageError("a GPU is seen that should be hidden; see tests/devices.py")
        return
    reason = "needs a CUDA GPU, and `make test-gpu`"
    for item in items:
        if item.get_closest_marker(devices.GPU) is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def exact_float32() -> Iterator[None]:
    """Switches TF32 off: a GPU's convolutions of float32 otherwise round inputs to 10 bits."""
    from tools.gpu_check.context import tf32

    with tf32(False):
        yield


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny SDXL; not to be written to."""
    return make_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny")


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


@pytest.fixture(scope="session")
def shared_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that only read."""
    return make_student(tmp_path_factory.mktemp("shared") / "student")


@pytest.fixture
def student(shared_student: Path, tmp_path: Path) -> Path:
    """A copy of ``shared_student`` that a test may change."""
    return shutil.copytree(shared_student, tmp_path / "student")
