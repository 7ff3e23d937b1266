"""DeepSpeed's prefetching: how many of its fetches follow a recording, and that it changes nothing.

The networks' matrices are larger than what DeepSpeed keeps whole, so ranks do gather them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.ranks import run_ranks
from tests.tiny import make_tiny_wan
from tests.training import make_job, make_trainer, needs_deepspeed

pytestmark = [needs_deepspeed, pytest.mark.slow]

WIDE = {
    "num_attention_heads": 6,
    "attention_head_dim": 64,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 768,
    "num_layers": 2,
}
METHODS = {
    "sgmd": ("parallel.gradient_checkpointing=true", "train.accumulation=2"),
    "dmd2": ("method.fake_score_updates=2",),
    "adm": (),
}
WARM_UP, MEASURED = 2, 2


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import WanTransformer3DModel

    folder = make_tiny_wan(tmp_path_factory.mktemp("wide") / "wan")
    WanTransformer3DModel(**WIDE).save_pretrained(folder / "transformer")
    return folder


@contextmanager
def counted_fetches() -> Iterator[Counter[Any]]:
    """Counts, by direction, fetches that follow a recording and others; and gathered numbers."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.partitioned_param_coordinator import (
        PartitionedParameterCoordinator as Coordinator,
    )

    counts: Counter[Any] = Counter()
    fetch = Coordinator.fetch_sub_module
    gather_name = "_PartitionedParameterCoordinator__all_gather_params_"
    gather = getattr(Coordinator, gather_name)

    def counting_fetch(self: Any, module: Any, forward: bool) -> None:
        counts["forward" if forward else "backward", self.is_complete_trace()] += 1
        fetch(self, module, forward)

    def counting_gather(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        away = (p for p in params if p.ds_status == ZeroParamStatus.NOT_AVAILABLE)
        counts["gathered"] += sum(p.ds_numel for p in away)
        gather(self, params, *args, **kwargs)

    Coordinator.fetch_sub_module = counting_fetch
    setattr(Coordinator, gather_name, counting_gather)
    try:
        yield counts
    finally:
        Coordinator.fetch_sub_module = fetch
        setattr(Coordinator, gather_name, gather)


Found = tuple[dict[Any, int], list[Any]]
"""Counts of the last iterations, and losses and norms of all."""


def iterations(
    teacher: Path, folder: Path, methods: list[str], as_deepspeed: bool
) -> dict[str, Found]:
    """The counts and results of each method; with DeepSpeed's one recording on request."""
    from lightx2v_sgmd.parallel import connect
    from lightx2v_sgmd.parallel.zero3 import prefetch

    if as_deepspeed:
        prefetch.PrefetchByPass._choose = lambda *args: None  # type: ignore[method-assign]
    ranks = connect("zero3", torch.device("cpu"))
    found = {}
    for method in methods:
        layout = ("parallel.strategy=zero3", f"method.name={method}")
        job = make_job(teacher, folder / f"{method}{ranks.rank}", *layout, *METHODS[method])
        with counted_fetches() as counts:
            trainer = make_trainer(job, ranks, "zero3")
            results = []
            for iteration in range(WARM_UP + MEASURED):
                if iteration == WARM_UP:
                    counts.clear()
                done = trainer.iterate(iteration)
                results.append((done.losses, done.grad_norm))
        found[method] = dict(counts), results
    trainer.strategy.close()
    return found


def followed(counts: dict[Any, int], direction: str) -> float:
    yes, no = (counts.get((direction, kind), 0) for kind in (True, False))
    return yes / (yes + no)


def test_fetches_follow_a_recording(teacher: Path, tmp_path: Path) -> None:
    ours = run_ranks(2, iterations, teacher, tmp_path, list(METHODS), False)
    for method, (counts, _) in ours.items():
        for direction in ("forward", "backward"):
            assert followed(counts, direction) >= 0.95, (method, direction)
    theirs = run_ranks(2, iterations, teacher, tmp_path, ["sgmd"], True)
    (counts, results), (usual, expected) = ours["sgmd"], theirs["sgmd"]
    assert results == expected
    assert followed(usual, "backward") < 0.95  # or there is nothing to mend
    assert counts["gathered"] < usual["gathered"]
