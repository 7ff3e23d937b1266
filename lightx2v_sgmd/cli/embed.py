"""``lightx2v-sgmd embed``: computes the text embeddings of a job's prompts before it runs."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import asdict

from lightx2v_sgmd.cli.options import PROG, JobFile, Json, Quiet, Settings
from lightx2v_sgmd.system.errors import UserError

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} embed configs/wan2.1_t2v_14b_sgmd.yaml --set data.embeddings=embeddings\n"
    f"  torchrun --nproc-per-node 8 -m lightx2v_sgmd embed JOB.yaml"
)


def embed_command(
    job: JobFile,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Embed a job's prompts and images before it runs.

    The images are those that videos start from. The embeddings go into the folder
    `data.embeddings`, and training then needs no text encoder. If the command is interrupted
    (Ctrl-C, SIGTERM, SIGUSR1), run it again to resume. Embeddings are stored by encoder and prompt,
    so several jobs may share a folder. Under torchrun the processes share the work.
    """
    from lightx2v_sgmd.job.loading import load_job

    checked = load_job(job, settings or [])
    cache = checked.data.embeddings
    if cache is None:
        raise UserError(
            f"{job}: data.embeddings is not set; name a folder, for example "
            "--set data.embeddings=embeddings, and train with the same setting"
        )
    from distill.building import check_images, wanted_images
    from distill.data import load_prompts
    from distill.model_checks import job_sources
    from distill.running.signals import interruptible
    from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
    from lightx2v_sgmd.files.prompts import note_unread
    from lightx2v_sgmd.files.video import check_writable
    from lightx2v_sgmd.outputs import locked_folder, refuse_overlap, resolved
    from lightx2v_sgmd.parallel import Ranks, training_device
    from lightx2v_sgmd.text.encoding import embed
    from lightx2v_sgmd.text.images import encode_images

    check_writable(cache, folder=True)
    out = resolved(cache, "data.embeddings")
    refuse_overlap(out, job_sources(checked), "data.embeddings")
    model = open_teacher(checked.teacher)
    checked = with_defaults(checked, model)
    check_images(checked, model)
    negative = model.negative_prompt_for(checked.teacher.negative_prompt)
    prompts = [*load_prompts(checked), negative]
    rank, size = (int(os.environ.get(key, alone)) for key, alone in _RANKS.items())
    ranks = Ranks(rank, size, training_device())
    note_unread(checked.data.prompts, quiet or not ranks.first)
    # The first process has the lock for all: a launcher ends the others with it.
    lock = locked_folder(out, "embed", quiet, ["*"]) if ranks.first else nullcontext()
    with interruptible(), lock:
        done = embed(model, prompts, ranks, model.text_dtype(checked.teacher.dtype), cache, quiet)
        # These processes exchange nothing: each encodes its share of the images.
        mine = wanted_images(checked, model)[rank::size]
        encode_images(model, mine, Ranks(device=ranks.device), cache, quiet)
    if ranks.first:
        print(json.dumps(asdict(done), indent=2, default=str) if as_json else done.folder)


_RANKS = {"RANK": "0", "WORLD_SIZE": "1"}
