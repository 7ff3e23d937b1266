"""Weights reach the ranks slice by slice: what memory that takes, and how often files are read."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.parallel import StrategySettings
from tests.parallel.ranks import run_ranks
from tests.training import make_job, needs_deepspeed
from tools.benchmarks.peaks import memory_peak

LAYERS = int(os.environ.get("LIGHTX2V_SGMD_TEST_LAYERS", "4"))
"""Blocks of the 1.3B shape; 30 are the whole network, 2.8 GB, and take minutes."""


M_MMAP_THRESHOLD = -3


def write_zeros(path: Path, shapes: dict[str, torch.Size]) -> int:
    """A bfloat16 file without contents, which takes no room; returns the bytes of its tensors."""
    content, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        span = [offset, offset + size]
        content[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": span}
        offset += size
    header = json.dumps(content).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + offset)
    return offset


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(folder: Path) -> list[tuple[float, float]]:
    """By how much a rank's memory grows for one network and for three, over the file's size."""
    from lightx2v_sgmd.parallel import connect
    from lightx2v_sgmd.parallel.shards import fill_shards
    from lightx2v_sgmd.parallel.zero3.engines import build_sharded

    # Else glibc keeps what was freed for later, the more the larger it was: no need of loading's.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 131072)
    ranks = connect("zero3", torch.device("cpu"))
    model = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    model = replace(model, transformer_config=model.transformer_config | {"num_layers": LAYERS})
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in model.build_transformer().named_parameters()}
    file = folder / "model.safetensors"
    size = write_zeros(file, shapes) if ranks.first else 0
    size = ranks.gather(size)[0]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True},
    }
    small = replace(model, transformer_config=model.transformer_config | {"num_layers": 1})
    build_sharded(small, config)  # what DeepSpeed takes once
    gc.collect()  # the small network is in reference cycles; freed later, it would hide growth
    networks: list[Any] = []
    before, found = resident(), []
    for count in (1, 3):
        peak: dict[str, float] = {}
        with memory_peak(ranks.device, peak):
            networks += [build_sharded(model, config) for _ in range(count - len(networks))]
            copies = [(p.ds_tensor for p in each.parameters()) for each in networks[1:]]
            fill_shards(dict(networks[0].named_parameters()), WholeTensors([file]), ranks, copies)
        found.append((peak["gib"] * 2**30 - before) / size)
    return ranks.gather(found)


@needs_deepspeed
@pytest.mark.slow
def test_a_rank_takes_its_share_and_little_more(tmp_path: Path) -> None:
    for one, three in run_ranks(2, growth, tmp_path, timeout_s=1800):
        assert 0.45 < one < 0.5 * 1.2
        assert 1.45 < three < 1.5 * 1.2


def reads(teacher: Path, folder: Path, dtype: str) -> dict[str, int]:
    """How often each weight was read for student, fake score and teacher."""
    from lightx2v_sgmd.parallel import connect
    from lightx2v_sgmd.parallel.zero3.strategy import Zero3

    counted: Counter[str] = Counter()
    original = WholeTensors.read

    def noted(self: WholeTensors, name: str, start: int, stop: int) -> torch.Tensor:
        counted[name] += 1
        return original(self, name, start, stop)

    WholeTensors.read = noted  # type: ignore[method-assign]
    job = make_job(teacher, folder / str(dist.get_rank()), f"teacher.dtype={dtype}")
    ranks = connect("zero3", torch.device("cpu"))
    strategy = Zero3(open_wan(teacher), StrategySettings.of(job), ranks, fold_text=True)
    whole = open_wan(teacher).transformer_weights()
    for role in strategy.trained:
        for name, value in strategy.whole_tensors(role):
            assert torch.equal(value, whole.tensor(name).float()), (role, name)
    strategy.close()
    return dict(counted)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_three_networks_share_one_read(tiny_teacher: Path, tmp_path: Path, dtype: str) -> None:
    """Masters in float32 too, of shards in bfloat16."""
    counted = run_ranks(2, reads, tiny_teacher, tmp_path, dtype)
    assert set(counted.values()) == {1} and len(counted) > 20
