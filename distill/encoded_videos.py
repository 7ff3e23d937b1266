"""Latents of captioned videos, for methods that compare the student with real videos.

The videos are a folder of ``NAME.mp4``, each with its caption in ``NAME.txt`` beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from distill.model_checks import teacher_sources
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.files.latents import check_origin, shard_path, write_shard
from lightx2v_sgmd.files.prompts import MOST_CHARACTERS, prompt_problem
from lightx2v_sgmd.files.video import check_writable, read_video
from lightx2v_sgmd.job.schema import Job, VideoSize
from lightx2v_sgmd.outputs import content_hashes, locked_folder, refuse_overlap, resolved
from lightx2v_sgmd.system.console import progress
from lightx2v_sgmd.system.errors import UserError, short_line
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest
from lightx2v_sgmd.untrusted.reading import decode_text, read_limited

# F frames, H height, W width

_MOST_BYTES: Final = 4 * MOST_CHARACTERS


def encode_videos(videos: Path, job: Job, out: Path, shard: int = 64, quiet: bool = False) -> Path:
    """Writes the shards of latents that the folder lacks; existing shards are never replaced.

    Args:
        videos: A folder of ``NAME.mp4`` and ``NAME.txt``.
        job: Names the model whose VAE encodes, and the size of the videos.
        out: The folder of latents.
        shard: Videos in one file.
        quiet: Show no progress.

    Returns:
        The folder.

    Raises:
        UserError: a video or its caption cannot be used, the model makes images, or the folder
            holds latents that were made with other settings.
    """
    files = sorted(videos.glob("*.mp4"))
    if not files:
        raise UserError(f"{videos}: has no .mp4 files; name a folder of NAME.mp4 and NAME.txt")
    folder = resolved(out)
    refuse_overlap(folder, {**teacher_sources(job), "VIDEOS": videos})
    captions = [_caption(file.with_suffix(".txt")) for file in files]
    check_writable(out, folder=True)
    model = open_teacher(job.teacher)
    job = with_defaults(job, model)
    if model.size_rules.images:
        raise UserError(
            f"teacher.path: {model.path} makes images, and encode-videos reads videos; set "
            "method.gan_weight=0, with which dmd2 trains on prompts alone"
        )
    with locked_folder(folder, "encode-videos", quiet):
        _encode(model, files, captions, job.video, folder, shard, quiet)
    return out


@torch.no_grad()
def _encode(
    model: Model,
    files: Sequence[Path],
    captions: Sequence[str],
    size: VideoSize,
    out: Path,
    shard: int,
    quiet: bool,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = model.load_vae(device=device)
    content = "".join(content_hashes([*files, *(file.with_suffix(".txt") for file in files)]))
    origin = {
        "model": model.path,
        "vae": weights_digest(model, "vae"),
        "size": [size.height, size.width, size.frames],
        "videos": len(files),
        "shard": shard,
        "content": hashlib.sha256(content.encode()).hexdigest(),
    }
    check_origin(out, origin)
    with progress(len(files), "encoding videos", quiet) as bar:
        for start in range(0, len(files), shard):
            these = slice(start, start + shard)
            if not shard_path(out, start // shard).exists():
                latents = []
                for file in files[these]:
                    video = _video(file, size)[None].to(device)
                    encoded = vae.encode(video).latent_dist.mode()
                    latents.append(model.normalized_latents(vae, encoded).cpu())
                write_shard(out, start // shard, torch.cat(latents), None, captions[these], origin)
            bar.advance(len(files[these]))


def _video(file: Path, size: VideoSize) -> Tensor:
    """The first frames of a video, ``[3, F, H, W]`` in [-1, 1].

    Raises:
        UserError: the file is damaged, or the video is smaller, larger or shorter than ``size``.
    """
    try:
        frames = torch.from_numpy(read_video(file, size.frames)[0])
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            f"{file}: cannot be read as a video ({short_line(str(error), 80)}); convert it to mp4"
        ) from error
    if tuple(frames.shape[:3]) != (size.frames, size.height, size.width):
        raise UserError(
            f"{file}: has {len(frames)} frames of {frames.shape[1]}x{frames.shape[2]}, but the job "
            f"needs {size.frames} of {size.height}x{size.width}; convert it first"
        )
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


def _caption(file: Path) -> str:
    """The text beside a video.

    Raises:
        UserError: the file is missing or too long, or its text cannot be embedded.
    """
    if not file.is_file():
        raise UserError(f"{file}: is missing; put each video's caption beside it")
    caption = decode_text(read_limited(file, _MOST_BYTES), file).strip()
    if problem := prompt_problem(caption):
        raise UserError(f"{file}: the caption {problem}; shorten or mend it")
    return caption
