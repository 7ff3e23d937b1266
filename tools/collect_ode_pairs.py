"""Collects ODE pairs from a job's teacher: noises, and what its sampler makes of them.

    python -m tools.collect_ode_pairs configs/sprites_adp.yaml --count 512 --out pairs

The job names the teacher, its guidance, the size of the videos and the prompts; ``adp`` and
``dmdx`` train on the result (``data.latents``). Interrupted, the same command goes on with the
shards that are missing; several machines can share the work with ``--part K/N``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from distill.data import load_prompts, prompts_digest
from lightx2v_sgmd.families.sampling import TEACHER_STEPS, VideoSampler, noise_for, teacher_schedule
from lightx2v_sgmd.families.sampling import teacher_shift as shift_of
from lightx2v_sgmd.families.wan import open_wan
from lightx2v_sgmd.files.dtypes import torch_type
from lightx2v_sgmd.files.latents import check_origin, shard_path, write_shard
from lightx2v_sgmd.job.schema import LATENTS, Data, Job, load_job
from lightx2v_sgmd.outputs import clean_temporaries, locked_file, refuse_overlap, resolved
from lightx2v_sgmd.system.console import progress
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import shipped_model
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest


def collect(
    job: Job, prompts: Sequence[str], out: Path, count: int, steps: int, shard: int, part: str
) -> None:
    """Writes the shards of ``part`` (``K/N``, from 1) that are not there yet."""
    model = open_wan(job.teacher.path, job.teacher.base)
    schedule = teacher_schedule(shift_of(model), steps)
    size = (job.video.height, job.video.width, job.video.num_frames)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sampler = VideoSampler(
        model,
        schedule,
        size,
        job.teacher.guidance_scale,
        job.teacher.negative_prompt,
        device=device,
        dtype=torch_type(job.teacher.dtype),
    )
    origin = {
        "teacher": job.teacher.path,
        "guidance_scale": job.teacher.guidance_scale,
        "negative_prompt": job.teacher.negative_prompt,
        "schedule": schedule.to_dict(),
        "count": count,
        "shard": shard,
        "seed": job.train.seed,
        "weights": weights_digest(model, "transformer"),
        "prompts": prompts_digest(list(prompts)),
    }
    k, n = (int(number) for number in part.split("/"))
    starts = range(0, count, shard)
    mine = [index for index in range(len(starts)) if index % n == k - 1]
    missing = [index for index in mine if not shard_path(out, index).exists()]
    check_origin(out, origin)
    done = sum(len(range(count)[starts[i] : starts[i] + shard]) for i in mine if i not in missing)
    total = sum(len(range(count)[starts[i] : starts[i] + shard]) for i in mine)
    with progress(total, "sampling pairs", done=done) as bar:
        for index in missing:
            numbers = range(count)[starts[index] : starts[index] + shard]
            texts = [prompts[i % len(prompts)] for i in numbers]
            seeds = [job.train.seed * 1_000_003 + i for i in numbers]
            noise = torch.cat([noise_for(seed, sampler.shape) for seed in seeds])
            x0 = sampler.latents(texts, noise)
            write_shard(out, index, x0.cpu(), noise, texts, origin)
            bar.advance(len(numbers))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", type=Path, help="whose teacher, video and prompts to use")
    parser.add_argument("--out", type=Path, required=True, help="the folder of pairs")
    parser.add_argument("--count", type=int, default=1024, help="pairs; prompts are gone through")
    parser.add_argument("--steps", type=int, default=TEACHER_STEPS, help="of the teacher's sampler")
    parser.add_argument("--shard", type=int, default=64, help="pairs in a file")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="this machine's share")
    parser.add_argument("--prompts", help="a prompt file instead of the job's, or: sprites")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    args = parser.parse_args(arguments)
    try:
        # Jobs of the methods that need pairs name a folder that is being made only now.
        job = load_job(args.job, args.settings)
        if args.prompts:
            shipped = shipped_model(args.prompts) is not None
            path = args.prompts if shipped else str(Path(args.prompts).absolute())
            job = replace(job, data=Data(prompts=path))
        if job.data.prompts == LATENTS:
            raise UserError("--prompts: the job's prompts are those of the pairs; give a file")
        out = resolved(args.out)
        refuse_overlap(out, {"the teacher": Path(job.teacher.path)})
        # A lock for each part: several machines may fill one folder.
        part = out / f"part_{args.part.replace('/', '_of_')}"
        with locked_file(part, "collect_ode_pairs"):
            clean_temporaries(out)
            collect(job, load_prompts(job), out, args.count, args.steps, args.shard, args.part)
    except UserError as error:
        print(f"collect_ode_pairs: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
