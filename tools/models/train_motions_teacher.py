"""Trains the second bundled teacher, of the world of motions, from the first one.

    python -m tools.models.train_motions_teacher encode --work work/motions
    python -m tools.models.train_motions_teacher train  --work work/motions --steps 6000
    python -m tools.models.train_motions_teacher export --work work/motions --out motions/

VAE, text encoder and tokenizer are the first teacher's and stay as they are, so videos are encoded
once, captions are embedded once, and the transformer alone trains. Each stage is resumable: run the
same command again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lightx2v_sgmd.apps.sprites.evaluate import training_motion_captions
from lightx2v_sgmd.families.sources.model_folder import PROMPTS_FILE, VIDEO_FILE
from lightx2v_sgmd.families.sources.parts import INDEX
from lightx2v_sgmd.families.text_rows import fold_text_padding
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import bundled_teacher, open_wan
from lightx2v_sgmd.flow import add_noise, shift_sigma
from tools.benchmarks.muon import Muon
from tools.models.motions_pool import (
    NAMED,
    Pool,
    PosteriorMeans,
    draw_batch,
    embed_captions,
    encode_pool,
)
from tools.models.sprites_training import follow, save_atomically, set_lr, trapezoid, update
from tools.own_files import check_new

# B batch, C channels, T latent frames, h, w, S text tokens, D text width

FLOW_SHIFT: Final = 3.0
"""Shift of the training times, as for the first teacher."""
DECIDING: Final = (0.6, 0.95)
"""Times at which a noisy latent of an open caption begins to show, and then shows, its motion."""
DECIDING_SHARE: Final = 0.6
SAVE_EVERY: Final = 100
CAPTIONS: Final = 2048
"""Captions that come with the teacher, as with the first one."""


def optimizers_of(network: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest."""
    inner: list[torch.nn.Parameter] = []
    outer: list[torch.nn.Parameter] = []
    for name, p in network.named_parameters():
        (inner if p.ndim == 2 and name.startswith("blocks.") else outer).append(p)
    return [Muon(inner, lr=lr), torch.optim.AdamW(outer, lr=0.2 * lr, weight_decay=0.0)]


def earlier_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of an earlier run: its ``train.pt``, or a shipped ``.safetensors`` file."""
    if path.suffix == ".safetensors":
        return load_file(path)
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["ema"]
    return weights


def draw_sigmas(count: int) -> torch.Tensor:
    """Draws stratified times, a share of them where motions are decided, ``[count]``."""
    u = (torch.randperm(count) + torch.rand(count)) / count
    deciding = u < DECIDING_SHARE
    low, high = DECIDING
    inner = low + (high - low) * u / DECIDING_SHARE
    outer = shift_sigma((u - DECIDING_SHARE) / (1 - DECIDING_SHARE), FLOW_SHIFT)
    return torch.where(deciding, inner, outer.clamp(min=1e-3))[torch.randperm(count)]


def flow_matching_loss(
    network: torch.nn.Module,
    x0: torch.Tensor,
    text: torch.Tensor,
    captions: Sequence[str],
    means: PosteriorMeans,
) -> torch.Tensor:
    """The mean square error of the velocity to that of the posterior mean at the drawn times."""
    noise, sigma = torch.randn_like(x0), draw_sigmas(len(x0))
    x_t = add_noise(x0, noise, sigma)
    s = sigma.view(-1, 1, 1, 1, 1)
    target = (x_t - means(x_t, sigma, captions)) / s
    with torch.autocast("cpu", torch.bfloat16):
        predicted = velocity(network, x_t, sigma, text)
    return F.mse_loss(predicted.float(), target)


def train(args: argparse.Namespace) -> None:
    """Flow matching on encoded videos; the learning rate falls to zero over the second half."""
    model = open_wan("sprites")
    pool = read_pool(args)
    rows, table = embed_captions(model.load_text_encoder(torch.float32))
    network = model.load_transformer(torch.float32).train().requires_grad_(True)
    fold_text_padding(network)
    if args.init_from:
        network.load_state_dict(earlier_weights(args.init_from))
    optimizers = optimizers_of(network, args.lr)
    base = [group["lr"] for o in optimizers for group in o.param_groups]
    ema = {k: v.detach().clone() for k, v in network.state_dict().items()}
    path, step, spent = args.work / "train.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        ema, step, spent = state["ema"], state["step"], state["seconds"]
    if args.compile:
        for block in network.blocks:
            block.compile()
    torch.manual_seed(args.seed + step)
    rng = np.random.default_rng(args.seed + 2 + step)
    means = PosteriorMeans(pool)
    losses: list[float] = []
    began = time.monotonic()
    while step < args.steps:
        set_lr(optimizers, base, trapezoid(step / args.steps, step, warmup=50, decay_from=0.5))
        x0, captions = draw_batch(pool, rng, args.batch, named_share=args.named)
        text = table[[rows[caption] for caption in captions]]
        loss = flow_matching_loss(network, x0, text, captions, means)
        update(loss, network, optimizers)
        step += 1
        follow(ema, network, step)
        losses.append(loss.item())
        if step % SAVE_EVERY == 0 or step == args.steps:
            seconds = spent + time.monotonic() - began
            states = [o.state_dict() for o in optimizers]
            save_atomically(
                {
                    "model": network.state_dict(),
                    "optimizers": states,
                    "ema": ema,
                    "step": step,
                    "seconds": seconds,
                },
                path,
            )
            rate = seconds / step
            print(
                f"step {step}/{args.steps}  {seconds / 60:.1f} min  {rate:.2f} s a step  "
                f"loss {np.mean(losses):.4f}",
                flush=True,
            )
            losses.clear()


def export(args: argparse.Namespace) -> None:
    """Writes the folder of the teacher from the moving average of the weights."""
    check_new(args.out)
    state = torch.load(args.work / "train.pt", weights_only=True)
    print(f"exporting step {state['step']}", flush=True)
    write_folder(args.out, state["ema"])


def write_folder(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Writes the transformer in bf16, and what the model and its videos are."""
    network = open_wan("sprites").build_transformer()
    network.load_state_dict(weights)
    network.to(torch.bfloat16).save_pretrained(folder / "transformer")
    for name in (INDEX, VIDEO_FILE):
        (folder / name).write_text((bundled_teacher() / name).read_text())
    (folder / PROMPTS_FILE).write_text("\n".join(training_motion_captions(CAPTIONS)) + "\n")


def read_pool(args: argparse.Namespace) -> Pool:
    """The encoded videos of the first stage, which are made now if there are none."""
    return encode_pool(open_wan("sprites"), args.work / "latents.pt", args.pool, args.seed + 1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    encode = stages.add_parser("encode", help="render and encode videos")
    training = stages.add_parser("train", help="train the transformer")
    training.add_argument("--steps", type=int, default=6000)
    training.add_argument("--batch", type=int, default=64)
    training.add_argument("--init-from", type=Path, help="train.pt or .safetensors to start from")
    training.add_argument("--lr", type=float, default=0.008, help="of Muon")
    training.add_argument(
        "--named", type=float, default=NAMED, help="share of captions that name the motion"
    )
    training.add_argument("--compile", action="store_true", help="compile the blocks")
    out = stages.add_parser("export", help="write the model folder")
    out.add_argument("--out", type=Path, required=True, help="new or empty")
    for stage in (encode, training, out):
        stage.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
        stage.add_argument("--pool", type=int, default=24_000, help="number of encoded videos")
        stage.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    stages_by_name: dict[str, Any] = {"encode": read_pool, "train": train, "export": export}
    stages_by_name[args.stage](args)


if __name__ == "__main__":
    main()
