"""Builds the trainer of a job: data, networks and where they start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.data import Batches, image_digests, load_images
from distill.pixels import PixelFeatures
from distill.trainer import Trainer
from distill.updates import Iteration, updates_done, updates_of_experts
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.size_rules import Size
from lightx2v_sgmd.families.teacher import open_own_models
from lightx2v_sgmd.files.latents import LatentFolder
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import TEACHER, Ranks, Strategy, StrategySettings, open_strategy
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.cache import longest
from lightx2v_sgmd.text.encoding import check_fillable, encode_prompts
from lightx2v_sgmd.text.images import EmbeddingsWithImages, encode_images


@dataclass(frozen=True)
class StartingPoint:
    """The point at which a run begins: after ``step`` iterations, from ``checkpoint`` if any."""

    step: int = 0
    checkpoint: Path | None = None
    partial_iteration: Iteration | None = None


def build_trainer(
    job: Job,
    model: Model,
    prompts: list[str],
    latents: LatentFolder | None,
    ranks: Ranks,
    start: StartingPoint,
    quiet: bool,
    rows: Sequence[Embedding] | None = None,
    exit_order: Callable[[int], int] | None = None,
) -> Trainer:
    """Loads everything; ``strategy.close`` of the trainer lets go of it.

    Args:
        job: The job to train.
        model: The teacher.
        prompts: The prompts of the job.
        latents: The latents that ``open_latents`` gave.
        ranks: The processes of the run.
        start: The state to take up.
        quiet: Show no progress.
        rows: The embeddings of the prompts and, last, of the negative prompt; None loads the text
            encoder to make them.
        exit_order: The exit step of each exit index, for measurements; None draws it.
    """
    if rows is None:
        rows = _embeddings(job, model, prompts, ranks, quiet)
    own = open_own_models(job, model)
    fold_text = all(_worth_folding(each, rows, ranks) for each in (model, *own.values()))
    strategy = open_strategy(
        job.parallel.strategy, model, StrategySettings.of(job), ranks, fold_text, own
    )
    video = job.video
    shape = model.latent_shape(video.height, video.width, video.frames)
    wanted = wanted_images(job, model)
    embeddings = rows[:-1]
    if wanted:
        images = encode_images(model, wanted, ranks, job.data.embeddings, quiet)
        embeddings = EmbeddingsWithImages(embeddings, images)
    batches = Batches(
        job,
        embeddings,
        rows[-1],
        shape,
        ranks,
        latents,
        model.interpolant,
        model.conditioning,
        model.experts,
        [None if each is None else each[0] for each in wanted],
        exit_order,
    )
    if start.checkpoint is not None:
        updates = updates_done(job.method, start.step)
        if len(model.experts) > 1:
            count = len(model.experts)
            updates = updates_of_experts(job.method, start.step, count, batches.expert)
        stepped = start.partial_iteration.stepped if start.partial_iteration else {}
        updates = {role: count + stepped.get(role, 0) for role, count in updates.items()}
        strategy.load(start.checkpoint, updates)
    return Trainer(job, strategy, batches, _pixels(job, model, strategy))


def open_latents(job: Job, model: Model) -> LatentFolder | None:
    """The latents that the method reads, if it does.

    Raises:
        UserError: they are of another size than the job's videos, or no pairs.
    """
    wanted = job.method.reads_latents
    if wanted is None or job.data.latents is None:
        return None
    latents = LatentFolder(job.data.latents)
    video = job.video
    shape = model.latent_shape(video.height, video.width, video.frames)
    if tuple(latents.shape) != shape:
        raise UserError(
            f"data.latents: {latents.folder} holds latents of shape {tuple(latents.shape)}, the "
            f"job's videos have {shape}; set video.* to what they were made with"
        )
    if wanted == "pairs" and not latents.has_noise:
        raise UserError(
            f"data.latents: {latents.folder} holds encoded videos, {job.method.name} needs ODE "
            "pairs; make them with `lightx2v-sgmd collect-pairs`"
        )
    return latents


def _pixels(job: Job, model: Model, strategy: Strategy) -> PixelFeatures | None:
    """The pixel discriminator's backbone, if the method has one."""
    pixels = job.method.pixel_discriminator
    if pixels is None:
        return None
    group = getattr(strategy.networks[TEACHER], "sequence_group", None)
    return PixelFeatures.load(model, pixels.vision_encoder, strategy.ranks.device, group)


def wanted_images(job: Job, model: Model) -> list[tuple[Path, Size] | None]:
    """The image of each prompt with the size of its video; an empty list if none has one."""
    size = (job.video.height, job.video.width, job.video.frames)
    images = load_images(job) if model.takes_image != "never" else []
    return [None if image is None else (image, size) for image in images]


def check_images(job: Job, model: Model) -> None:
    """Refuses prompts whose images the teacher cannot start from, and images that are none.

    Raises:
        UserError: an image is missing, damaged or not wanted, or a prompt lacks one.
    """
    images = load_images(job)
    name = job.data.prompts
    if (images or model.takes_image == "always") and job.method.reads_latents is not None:
        raise UserError(
            f"method.name: {job.method.name} learns from latents, which are made from text alone; "
            "use sgmd or another method for videos that start from an image"
        )
    if model.takes_image == "always":
        if not images or None in images:
            count = f"{images.count(None)} prompts" if images else "prompts"
            raise UserError(
                f"data.prompts: {name} has {count} without an image, and "
                f"{job.teacher.path} starts from one; give a .jsonl file whose lines have "
                '"prompt" and "image"'
            )
    elif model.takes_image == "never" and images:
        raise UserError(
            f"data.prompts: {name} names images, and {job.teacher.path} makes videos from text "
            "alone; leave them out, or use an image-to-video teacher"
        )
    image_digests(images)


def check_embeddings(job: Job, model: Model, prompts: list[str]) -> None:
    """Refuses a folder of embeddings that lacks prompts and cannot be written.

    Raises:
        UserError: it is such a folder.
    """
    if job.data.embeddings is not None:
        dtype = model.text_dtype(job.teacher.dtype)
        check_fillable(model, _wanted(job, model, prompts), dtype, job.data.embeddings)


def _embeddings(
    job: Job, model: Model, prompts: list[str], ranks: Ranks, quiet: bool
) -> Sequence[Embedding]:
    """The prompts' embeddings and, last, the negative prompt's."""
    dtype = model.text_dtype(job.teacher.dtype)
    wanted = _wanted(job, model, prompts)
    return encode_prompts(model, wanted, ranks, dtype, job.data.embeddings, quiet)


def _wanted(job: Job, model: Model, prompts: list[str]) -> list[str]:
    return [*prompts, model.negative_prompt_for(job.teacher.negative_prompt)]


def _worth_folding(model: Model, rows: Sequence[Embedding], ranks: Ranks) -> bool:
    """True on a CPU if the network is wide enough for the padding weights (see ``text_rows``)."""
    width = model.width
    return ranks.device.type == "cpu" and longest(rows) + 1 <= width
