"""``lightx2v-sgmd encode-videos``: encodes captioned videos into latents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet, Settings, print_result

EXAMPLES = f"\b\nExample:\n  {PROG} encode-videos clips --job JOB.yaml --out latents"


def encode_videos_command(
    videos: Annotated[
        Path,
        typer.Argument(metavar="VIDEOS", help="Folder of NAME.mp4, each with a caption NAME.txt."),
    ],
    job: Annotated[
        Path,
        typer.Option(metavar="JOB.yaml", help="Job that names the model and the video size."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder of the latents.")],
    shard: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of videos in a file.")
    ] = 64,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Encode captioned videos into latents.

    A video of another size than the job's, or with too few frames, is refused; a longer one is cut.
    Methods that read real videos, such as dmd2 with its GAN term, train on them (data.latents). If
    the command is interrupted, run it again to make the files that are missing; existing files are
    never replaced.
    """
    from lightx2v_sgmd.job.loading import load_job

    checked = load_job(job, settings or [])
    from distill.encoded_videos import encode_videos
    from distill.running.signals import interruptible

    with interruptible():
        folder = encode_videos(videos, checked, out, shard, quiet)
    print_result({"latents": str(folder)}, str(folder), as_json)
