"""Measures how much of one row's gain another keeps, for students of a finished comparison.

    python -m tools.figures.gained_share COMPARISON --full 'sgmd quantize=none' \
        --other 'sgmd quantize=fp8-storage' --captions 1000

A row's gain is how many more videos than the undistilled steps' are right on everything that
their captions name. `compare` makes videos of some hundred captions, and 50 steps of the teacher
for each of them; the share of two gains needs more captions and no teacher. So each row's last
student and the undistilled steps make one video for each of many held-out captions, from noise
that is the same for all of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lightx2v_sgmd.apps.comparison.plan import UNDISTILLED, Plan
from lightx2v_sgmd.apps.comparison.saved import saved_plan
from lightx2v_sgmd.apps.comparison.worker import Bench
from lightx2v_sgmd.apps.sprites.evaluate import evaluate, held_out_captions
from lightx2v_sgmd.files.student_weights import has_average, student_files
from lightx2v_sgmd.sampling.sampler import VideoSampler
from lightx2v_sgmd.system.console import progress
from tools.own_files import check_own, write_own

MARK = '"share_kept"'
NOISE = 50_000_000
"""The first seed of the noise: `compare` and training use others."""

Right = NDArray[np.bool_]
"""True where a seed's video of a caption is right on everything: ``[seeds, captions]``."""


def right_videos(plan: Plan, row: str, seed: int, count: int) -> list[bool]:
    """Makes a video for each of ``count`` captions, and says which are right on everything."""
    sampler = Bench(plan, seed).sampler(few_steps=True)
    if row != UNDISTILLED:
        load_last(sampler, plan, row, seed)
    noise = range(NOISE + 1_000_000 * seed, NOISE + 1_000_000 * seed + count)
    measured = evaluate(sampler, sampler.nfe, held_out_captions(count), noise)
    return [verdict.all_attributes for verdict in measured.verdicts]


def load_last(sampler: VideoSampler, plan: Plan, row: str, seed: int) -> None:
    """Loads the weights with which a run of the comparison ended."""
    folder = plan.snapshot(row, seed, plan.snapshots()[-1])
    for expert in range(len(sampler.transformers)):
        sampler.load_weights(student_files(folder, has_average(folder), expert), expert)


def share_kept(undistilled: Right, full: Right, other: Right) -> float:
    """The gain of ``other`` over that of ``full``, each the mean over seeds and captions."""
    return float((other.mean() - undistilled.mean()) / (full.mean() - undistilled.mean()))


def interval(
    undistilled: Right, full: Right, other: Right, *, draws: int = 10_000
) -> tuple[float, float]:
    """The 95 % bootstrap interval of the share: seeds and captions are drawn with replacement."""
    rng = np.random.default_rng(0)
    seeds, captions = undistilled.shape
    shares = []
    for _ in range(draws):
        drawn = np.ix_(rng.integers(seeds, size=seeds), rng.integers(captions, size=captions))
        shares.append(share_kept(undistilled[drawn], full[drawn], other[drawn]))
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("comparison", type=Path, help="folder of a finished `compare`")
    parser.add_argument("--full", required=True, help="label of the row whose gain counts as 1")
    parser.add_argument("--other", required=True, help="label of the row that is held against it")
    parser.add_argument("--captions", type=int, default=1000, help="videos of a row and seed")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    if args.out is not None:
        check_own(args.out, MARK)
    plan = saved_plan(args.comparison)
    rows = {"undistilled": UNDISTILLED, "full": args.full, "other": args.other}
    for name, row in rows.items():
        if row not in plan.rows:
            parser.error(f"--{name}: {row!r} is no row; rows: {', '.join(map(repr, plan.jobs))}")
    if args.captions < 1:
        parser.error("--captions: must be at least 1")
    torch.set_grad_enabled(False)
    right: dict[str, Right] = {}
    with progress(len(rows) * len(plan.seeds) * args.captions, "measuring") as bar:
        for name, row in rows.items():
            found = []
            for seed in plan.seeds:
                found.append(right_videos(plan, row, seed, args.captions))
                bar.advance(args.captions)
            right[name] = np.array(found)
    one_seed = ([rows[[i]] for rows in right.values()] for i in range(len(plan.seeds)))
    figures = {
        "rows": rows,
        "captions": args.captions,
        "seeds": list(plan.seeds),
        "right_on_everything": {name: values.mean(1).tolist() for name, values in right.items()},
        "share_kept": share_kept(*right.values()),
        "share_kept_by_seed": [share_kept(*rows) for rows in one_seed],
        "interval_95": interval(*right.values()),
    }
    text = json.dumps(figures, indent=2) + "\n"
    print(text, end="")
    if args.out is not None:
        write_own(args.out, text, MARK)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
