"""Measures the bundled teacher of motions against its bars and writes its model card.

    python -m tools.models.measure_motions_teacher lightx2v_sgmd/assets/motions --videos work

Everything is measured from decoded frames, on held-out captions that name the motion and on open
ones. The command fails (exit 1) if a bar is missed, and then writes no card unless asked to with
``--write-anyway``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from lightx2v_sgmd.apps.sprites import motions
from lightx2v_sgmd.apps.sprites.evaluate import (
    TeacherSampler,
    held_out_motion_captions,
)
from lightx2v_sgmd.apps.sprites.motion_verdicts import (
    ATTRIBUTES,
    OTHER,
    MotionScores,
    motion_verdicts,
    score_motions,
)
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.outputs import appearing
from lightx2v_sgmd.sampling.teacher_steps import solver_text, teacher_solver
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.console import progress
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest
from tools.models.sprites_vae import to_model_range
from tools.own_files import check_own, write_own

NAMED_BAR: Final = 0.95
MIXTURE_BAR: Final = 0.05
VAE_BAR: Final = 0.99
OPEN_VIDEOS: Final = 600
"""The fewest videos with open motion for the bar: shares of fewer vary too much."""
BATCH: Final = 64
TITLE: Final = "# The bundled teacher of motions"
FIGURES_MARK: Final = '"open_manners"'


def bars(figures: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    """Each bar by name, with the figure that counts and whether it is met."""
    teacher, vae = figures["teacher"], figures["vae"]
    found = {}
    for name in ATTRIBUTES:
        share = teacher["named"][name]
        found[f"named {name} >= {NAMED_BAR}"] = (share, share >= NAMED_BAR)
    for manner, expected in motions.MIXTURE.items():
        share = teacher["open_manners"][manner]
        text = f"open {manner} within {MIXTURE_BAR} of {expected}"
        found[text] = (share, abs(share - expected) <= MIXTURE_BAR)
    enough = teacher["open_videos"] >= OPEN_VIDEOS
    found[f"open videos >= {OPEN_VIDEOS}"] = (teacher["open_videos"], enough)
    for name in ATTRIBUTES:
        share = vae["named"][name]
        found[f"VAE keeps {name} >= {VAE_BAR}"] = (share, share >= VAE_BAR)
    return found


def measure_vae(model: WanModel, count: int, seed: int) -> MotionScores:
    """Scores of the VAE's reconstructions of the world's videos, each motion equally often."""
    vae = model.load_vae()
    rng = np.random.default_rng(seed)
    verdicts = []
    every = motions.MOTIONS
    for start in range(0, count, 20):
        sprites = [
            motions.sample_sprite(rng, motions.MotionCaption(motion=every[i % len(every)]))
            for i in range(start, min(start + 20, count))
        ]
        frames = [(motions.render(s) * 255).round().astype(np.uint8) for s in sprites]
        x = to_model_range(torch.from_numpy(np.stack(frames)))
        with torch.no_grad():
            y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        decoded = ((y.clamp(-1, 1) / 2 + 0.5) * 255).round().byte().permute(0, 2, 3, 4, 1).numpy()
        verdicts += motion_verdicts(list(decoded), [s.caption() for s in sprites])
    return score_motions(verdicts)


def captions_to_measure(named: int, opened: int, seed: int) -> list[motions.MotionCaption]:
    """Held-out captions: ``named`` that name the motion, then ``opened`` that leave it open."""
    drawn = held_out_motion_captions(6 * (named + opened), seed=seed)
    wanted = islice((c for c in drawn if c.motion is not None), named)
    return [*wanted, *islice((c for c in drawn if c.motion is None), opened)]


def sample(
    sampler: TeacherSampler,
    captions: list[motions.MotionCaption],
    seed: int,
    kept: Path,
    part: tuple[int, int] = (1, 1),
) -> MotionScores | None:
    """Samples one video for each caption and scores them.

    Args:
        sampler: The sampler.
        captions: The captions.
        seed: Seed of the first video; later ones count up.
        kept: Files with this beginning keep the videos of each batch.
        part: Number of a part, from 1, and of all parts: only these batches are made.

    Returns:
        The scores; None of a part.
    """
    videos = []
    for number, start in enumerate(range(0, len(captions), BATCH)):
        these = captions[start : start + BATCH]
        path = kept.with_name(f"{kept.name}_{number:03}.npz")
        if number % part[1] == part[0] - 1 and not path.is_file():
            seeds = list(range(seed + start, seed + start + len(these)))
            with appearing(path, suffix=".npz") as temporary:
                np.savez_compressed(temporary, videos=sampler([c.text() for c in these], seeds))
        if part == (1, 1):
            with np.load(path, allow_pickle=False) as file:
                videos += list(file["videos"])
    return score_motions(motion_verdicts(videos, captions)) if part == (1, 1) else None


def card(figures: dict[str, Any], notes: str) -> str:
    """The model card's text."""
    teacher, few, vae = figures["teacher"], figures["undistilled"], figures["vae"]
    heads = [*ATTRIBUTES, "all attributes", "clean", "videos"]
    rows = [
        f"| {label} | {r['nfe']} | "
        + " | ".join(f"{r['named'][name]:.3f}" for name in ATTRIBUTES)
        + f" | {r['all_attributes']:.3f} | {r['clean']:.3f} | {r['videos']} |"
        for label, r in (
            (f"{figures['solver']}, guidance {figures['guidance']:g}", teacher),
            ("4 steps, no guidance (undistilled)", few),
        )
    ]
    manners = [*motions.MANNERS, OTHER]
    mixture = [
        f"| {label} | " + " | ".join(f"{shares[name]:.3f}" for name in manners) + " |"
        for label, shares in (
            ("the world", {**motions.MIXTURE, OTHER: 0.0}),
            ("this teacher", teacher["open_manners"]),
            ("undistilled", few["open_manners"]),
        )
    ]
    missed = [f"{name} (it is {got:.3f})" for name, (got, ok) in bars(figures).items() if not ok]
    verdict = (
        "All bars are met: named attributes at least 0.95, and each manner's share within 5 points."
        if not missed
        else f"**Bars that are missed: {'; '.join(missed)}.**"
    )
    newline = "\n"
    return f"""{TITLE}

A Wan transformer that makes the videos of `lightx2v_sgmd/apps/sprites/motions.py`: one object that
rests, moves slowly or fast, turns, bounces, or waits and then moves. Captions name the motion
("a red circle moving left and up", "a still thing") or leave it open ("a red circle"). Where it is
open, most objects rest or move slowly, and fast motions are rare: this teacher is for the question
whether a student leaves out what is rare. VAE, text encoder, tokenizer and scheduler are those of
`sprites`, so this folder holds the transformer alone; `teacher.path: motions` or
`--weights motions` opens it with them.

## Measured

From decoded frames, on held-out captions and seeds
(`python -m tools.models.measure_motions_teacher lightx2v_sgmd/assets/motions --guidance
{figures["guidance"]:g} --videos work`). {verdict}

| sampler | evaluations | {" | ".join(heads)} |
|{"---|" * (len(heads) + 2)}
{newline.join(rows)}

Shares of the manners in {teacher["open_videos"]} videos whose caption leaves the motion open:

| | {" | ".join(manners)} |
|{"---|" * (len(manners) + 1)}
{newline.join(mixture)}

Reconstructions by the VAE, {vae["videos"]} videos with every motion equally often:
{", ".join(f"{name} {vae['named'][name]:.3f}" for name in ATTRIBUTES)}.

`direction` is the set of a motion's directions, `manner` is how the object moves. `other` counts
videos whose object moves in none of the world's ways.

## How it was made

{notes.strip()}

The weights are Apache-2.0, like the project. The text encoder does not see the order of words, so
"left and up" and "up and left" are one caption. Words outside its world mean nothing to it.
"""


def read_part(text: str) -> tuple[int, int]:
    """``K/N`` as two numbers.

    Raises:
        ArgumentTypeError: the text is anything else.
    """
    match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text} is not K/N with K from 1 to N; write 1/3")
    return number, count


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--named", type=int, default=240, help="videos with a named motion")
    parser.add_argument("--open", type=int, default=640, help="videos with an open motion")
    parser.add_argument("--guidance", type=float, default=1.5, help="as in motions_sgmd.yaml")
    parser.add_argument("--seed", type=int, default=900_000)
    parser.add_argument("--videos", type=Path, required=True, help="folder that keeps the videos")
    parser.add_argument(
        "--part", type=read_part, default="1/1", help="K/N: only make part K of N of the videos"
    )
    parser.add_argument("--notes", type=Path, help="text for the card's section on the training")
    parser.add_argument("--write-anyway", action="store_true", help="write a card that misses bars")
    args = parser.parse_args()
    check_own(args.folder / "README.md", TITLE)
    check_own(args.folder / "measured.json", FIGURES_MARK)
    args.videos.mkdir(parents=True, exist_ok=True)
    model = open_wan(args.folder)
    captions = captions_to_measure(args.named, args.open, args.seed)
    solver = teacher_solver(model, None)
    figures: dict[str, Any] = {"solver": solver_text(solver), "guidance": args.guidance}
    asked = "_".join(
        [
            weights_digest(model, "transformer")[:8],
            re.sub(r"\W+", "-", solver_text(solver)),
            *(str(number) for number in (args.guidance, args.named, args.open, args.seed)),
        ]
    )
    settings = {"teacher": (solver, args.guidance), "undistilled": (Schedule(), 1.0)}
    for name, (schedule, scale) in settings.items():
        with progress(len(captions), f"sampling {name}") as bar:
            sampler = TeacherSampler(model, schedule, scale, batch=BATCH, on_batch=bar.advance)
            kept = args.videos / f"{name}_{asked}"
            scores = sample(sampler, captions, args.seed, kept, args.part)
        if scores is not None:
            figures[name] = {"nfe": sampler.nfe, **asdict(scores)}
    if args.part != (1, 1):
        return 0
    figures["vae"] = asdict(measure_vae(model, 300, args.seed))
    met = bars(figures)
    for text, (share, ok) in met.items():
        print(f"{'met   ' if ok else 'MISSED'}  {text}: {share:.3f}")
    print(json.dumps(figures, indent=2))
    all_met = all(ok for _, ok in met.values())
    if all_met or args.write_anyway:
        notes = "See `tools/models/train_motions_teacher.py`."
        notes = args.notes.read_text() if args.notes else notes
        write_own(args.folder / "README.md", card(figures, notes), TITLE)
        text = json.dumps(figures, indent=2) + "\n"
        write_own(args.folder / "measured.json", text, FIGURES_MARK)
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
