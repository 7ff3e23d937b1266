"""Trains the bundled teacher from nothing: a video VAE, a text encoder and a Wan transformer.

Three stages, each resumable (run the same command again) and each a few tens of CPU minutes:

    python -m tools.models.train_sprites_teacher vae     --work work/teacher
    python -m tools.models.train_sprites_teacher dit     --work work/teacher
    python -m tools.models.train_sprites_teacher export  --work work/teacher --out teacher/

The result is a folder in the layout of ``Wan2.1-T2V-*-Diffusers``.
``tools/models/measure_teacher.py`` writes its model card. The world that it learns is
``lightx2v_sgmd.apps.sprites.world``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from rich.progress import track
from transformers import UMT5EncoderModel

from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.apps.sprites.evaluate import training_captions
from lightx2v_sgmd.families.sources.model_folder import PROMPTS_FILE, VIDEO_FILE
from lightx2v_sgmd.families.text_rows import TextEncoder, fold_text_padding
from lightx2v_sgmd.families.wan.forward import normalized_latents, velocity
from lightx2v_sgmd.flow import add_noise, shift_sigma
from tools.benchmarks.muon import Muon
from tools.models.sprites_training import (
    Clock,
    follow,
    save_atomically,
    set_lr,
    trapezoid,
    update,
)
from tools.models.sprites_vae import (
    load_vae,
    to_model_range,
    train_vae,
)
from tools.models.wan_folder import make_tokenizer, text_encoder_config, write_wan_folder
from tools.own_files import check_new

# B batch, C channels, T latent frames, F video frames, H, W, S text tokens, D text width

TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": (1, 1, 1),
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 64,
    "ffn_dim": 576,
    "num_layers": 6,
}
WORDS = ["a", "an", "and", "moving", "thing", *sum((list(o) for o in world.OPTIONS.values()), [])]
CAPTIONS = 2048
"""Captions that come with the teacher: draws of the world, so short ones repeat."""
FLOW_SHIFT = 3.0
"""Shift of the training times and of the teacher's sampling schedule."""


def encode_pool(args: argparse.Namespace) -> tuple[torch.Tensor, list[world.Caption]]:
    """Renders and encodes videos once: normalised latents ``[N, C, T, h, w]`` bf16, captions.

    The captions name everything; training masks attributes anew at every use, which is the
    world's own law, since it draws what a caption leaves open uniformly.
    """
    path = args.work / "latents.pt"
    rng = np.random.default_rng(args.seed + 1)
    vae = load_vae(args.work)
    latents: list[torch.Tensor] = []
    captions = []
    cached = torch.load(path, weights_only=True) if path.exists() else None
    batch = 32
    for _ in track(range(args.pool // batch), description=f"encoding {args.pool} videos"):
        videos = []
        for _ in range(batch):
            caption = world.sample_caption(rng, p_two=0.3)
            _, sprites, video = world.sample_video(rng, caption)
            captions.append(world.Caption(tuple(s.caption() for s in sprites)))
            videos.append(torch.from_numpy((video * 255).round().astype(np.uint8)))
        if cached is None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                z = vae._encode(to_model_range(torch.stack(videos))).chunk(2, dim=1)[0].float()
            latents.append(normalized_latents(vae, z).bfloat16())
    if cached is None:
        cached = torch.cat(latents)
        save_atomically(cached, path)  # type: ignore[arg-type]
    return cached, captions


def masked_caption(full: world.Caption, rng: np.random.Generator, p_open: float = 0.35) -> str:
    """The caption with each attribute left open with ``p_open`` and the objects in either order."""
    objects = [
        world.ObjectCaption(**{k: v for k, v in o.named().items() if rng.random() >= p_open})
        for o in full.objects
    ]
    if rng.random() < 0.5:
        objects.reverse()
    return world.Caption(tuple(objects)).text()


class Teacher(torch.nn.Module):
    """The transformer with its text encoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = make_tokenizer(WORDS)
        config = text_encoder_config(len(self.tokenizer), width=64, layers=2, heads=4)
        self.text_network = UMT5EncoderModel(config)
        self.transformer = WanTransformer3DModel(**TRANSFORMER_CONFIG)
        fold_text_padding(self.transformer)

    def forward(self, x_t: torch.Tensor, sigma: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """The velocity ``[B, C, T, h, w]``; gradient reaches the text encoder as well."""
        hidden, mask = TextEncoder(self.tokenizer, self.text_network).forward(prompts)
        text = F.pad(hidden * mask[..., None], (0, 0, 0, 1))
        return velocity(self.transformer, x_t, sigma, text)


def start_from(model: Teacher, path: Path) -> None:
    """Takes over every weight of an earlier run (``dit.pt``) that still has its shape.

    After a change of the VAE that is all but the first and the last projection: what the network
    knows of words and of space remains.
    """
    own = model.state_dict()
    earlier = torch.load(path, weights_only=True)["ema"]
    taken = {k: v for k, v in earlier.items() if k in own and own[k].shape == v.shape}
    print(f"starting from {path}: {len(taken)} of {len(own)} tensors", flush=True)
    model.load_state_dict(taken, strict=False)


def train_dit(args: argparse.Namespace) -> None:
    """Flow matching on cached latents with caption dropout; Muon on matrices, AdamW on the rest."""
    torch.manual_seed(args.seed)
    latents, captions = encode_pool(args)
    held_out = len(latents) - 256
    model = Teacher()
    if args.init_from:
        start_from(model, args.init_from)
    inner: list[torch.nn.Parameter] = []
    outer: list[torch.nn.Parameter] = []
    for name, p in model.named_parameters():
        is_block = p.ndim == 2 and (".blocks." in name or ".block." in name)
        (inner if is_block and "relative_attention_bias" not in name else outer).append(p)
    optimizers = [Muon(inner, lr=args.lr), torch.optim.AdamW(outer, lr=2e-3, weight_decay=0.0)]
    base = [group["lr"] for o in optimizers for group in o.param_groups]
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    path, step, spent = args.work / "dit.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        ema, step, spent = state["ema"], state["step"], state["seconds"]
        torch.manual_seed(args.seed + step)
    rng = np.random.default_rng(args.seed + 2 + step)
    clock, losses = Clock(spent), []
    while (progress := clock.seconds() / (60 * args.minutes)) < 1:
        set_lr(optimizers, base, trapezoid(progress, step, warmup=50, decay_from=0.5))
        index = torch.randint(0, held_out, (args.batch,))
        x0 = latents[index].float()
        prompts = [
            "" if rng.random() < 0.1 else masked_caption(captions[i], rng) for i in index.tolist()
        ]
        noise = torch.randn_like(x0)
        # Stratified times: one in each of the batch's equal slices of [0, 1).
        u = (torch.randperm(args.batch) + torch.rand(args.batch)) / args.batch
        sigma = shift_sigma(u, FLOW_SHIFT)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(add_noise(x0, noise, sigma), sigma, prompts)
        loss = F.mse_loss(velocity.float(), noise - x0)
        update(loss, model, optimizers)
        step += 1
        follow(ema, model, step)
        losses.append(loss.item())
        if step % 100 == 0:
            save_atomically(
                {
                    "model": model.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "ema": ema,
                    "step": step,
                    "seconds": clock.seconds(),
                },
                path,
            )
            print(
                f"dit step {step}  {clock.seconds() / 60:.1f}/{args.minutes:.0f} min  "
                f"loss {np.mean(losses):.4f}",
                flush=True,
            )
            losses.clear()
    save_atomically({"ema": ema, "step": step}, args.work / "dit_done.pt")


def export(args: argparse.Namespace) -> None:
    """Writes the folder: transformer and text encoder in bf16, VAE in float32."""
    check_new(args.out)
    name = "dit_done.pt" if (args.work / "dit_done.pt").exists() else "dit.pt"
    model = Teacher()
    model.load_state_dict(torch.load(args.work / name, weights_only=True)["ema"])
    write_wan_folder(
        args.out,
        model.transformer.to(torch.bfloat16),
        load_vae(args.work),
        model.text_network,
        model.tokenizer,
        shift=FLOW_SHIFT,
    )
    write_facts(args.out)


def write_facts(folder: Path) -> None:
    """Writes what the world's videos are like, the negative prompt, and captions to train on."""
    video = {
        "height": world.SIZE,
        "width": world.SIZE,
        "num_frames": world.NUM_FRAMES,
        "fps": world.FPS,
        "negative_prompt": "",
    }
    (folder / VIDEO_FILE).write_text(json.dumps(video, indent=2) + "\n")
    (folder / PROMPTS_FILE).write_text("\n".join(training_captions(CAPTIONS)) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    vae = stages.add_parser("vae", help="train the video VAE")
    vae.add_argument("--minutes", type=float, default=8)
    vae.add_argument("--batch", type=int, default=16)
    vae.add_argument("--pool", type=int, default=8_000)
    vae.add_argument("--beta", type=float, default=5e-5, help="weight of the KL term")
    dit = stages.add_parser("dit", help="train the text encoder and the transformer")
    dit.add_argument("--minutes", type=float, default=35)
    dit.add_argument("--batch", type=int, default=64)
    dit.add_argument("--pool", type=int, default=20_000)
    dit.add_argument("--init-from", type=Path, help="dit.pt of an earlier run to start from")
    dit.add_argument("--lr", type=float, default=0.01, help="of Muon")
    out = stages.add_parser("export", help="write the model folder")
    out.add_argument("--out", type=Path, required=True, help="new or empty")
    for stage in (vae, dit, out):
        stage.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
        stage.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"vae": train_vae, "dit": train_dit, "export": export}[args.stage](args)


if __name__ == "__main__":
    main()
