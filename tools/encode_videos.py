"""Encodes captioned videos into latents, for methods that compare with real videos.

    python -m tools.encode_videos VIDEOS --job JOB.yaml --out latents

VIDEOS is a folder of NAME.mp4 with the caption in NAME.txt beside each. The job names the model
whose VAE encodes and the size; videos of another size or with too few frames are refused, longer
ones are cut. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import torch
from torch import Tensor

from lightx2v_sgmd.families.wan import WanModel, open_wan
from lightx2v_sgmd.files.latents import check_origin, shard_path, write_shard
from lightx2v_sgmd.job.schema import Video, load_job
from lightx2v_sgmd.outputs import content_hashes, locked_folder, refuse_overlap, resolved
from lightx2v_sgmd.system.console import progress
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest


def read_video(file: Path, size: Video) -> Tensor:
    """``[3, F, H, W]`` in [-1, 1].

    Raises:
        UserError: it is not of that size.
    """
    frames = torch.from_numpy(imageio.imread(file)[: size.num_frames])
    if tuple(frames.shape[:3]) != (size.num_frames, size.height, size.width):
        raise UserError(
            f"{file}: has {len(frames)} frames of {frames.shape[1]}x{frames.shape[2]}, the job "
            f"wants {size.num_frames} of {size.height}x{size.width}; convert it first"
        )
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(model: WanModel, files: Sequence[Path], size: Video, out: Path, shard: int) -> None:
    """Writes the shards that are not there yet."""
    captions = [file.with_suffix(".txt") for file in files]
    for caption in captions:
        if not caption.is_file():
            raise UserError(f"{caption}: is missing; put each video's caption beside it")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = model.load_vae(device=device)
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=device).view(shape)
    made_from = "".join(content_hashes([*files, *captions]))
    origin = {
        "model": model.path,
        "vae": weights_digest(model, "vae"),
        "size": [size.height, size.width, size.num_frames],
        "videos": len(files),
        "shard": shard,
        "content": hashlib.sha256(made_from.encode()).hexdigest(),
    }
    check_origin(out, origin)
    with progress(len(files), "encoding") as bar:
        for start in range(0, len(files), shard):
            chosen = slice(start, start + shard)
            if not shard_path(out, start // shard).exists():
                latents = []
                for file in files[chosen]:
                    video = read_video(file, size)[None].to(device)
                    latents.append(((vae.encode(video).latent_dist.mode() - mean) / std).cpu())
                texts = [c.read_text(encoding="utf-8").strip() for c in captions[chosen]]
                write_shard(out, start // shard, torch.cat(latents), None, texts, origin)
            bar.advance(len(files[chosen]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", type=Path, help="a folder of NAME.mp4 and NAME.txt")
    parser.add_argument("--job", type=Path, required=True, help="whose model and size to use")
    parser.add_argument("--out", type=Path, required=True, help="the folder of latents")
    parser.add_argument("--shard", type=int, default=64, help="videos in a file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    args = parser.parse_args(arguments)
    try:
        job = load_job(args.job, args.settings)
        files = sorted(args.videos.glob("*.mp4"))
        if not files:
            raise UserError(f"{args.videos}: has no .mp4 files")
        out = resolved(args.out)
        refuse_overlap(out, {"the model": Path(job.teacher.path), "VIDEOS": args.videos})
        model = open_wan(job.teacher.path, job.teacher.base)
        with locked_folder(out, "encode_videos"):
            encode(model, files, job.video, out, args.shard)
    except UserError as error:
        print(f"encode_videos: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
