"""Makes the videos that a student or a teacher is measured by, as far as they are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd import __version__
from lightx2v_sgmd.apps.evaluation.options import EvaluateOptions
from lightx2v_sgmd.apps.evaluation.reusing import take_over
from lightx2v_sgmd.apps.evaluation.sources import VideoSource
from lightx2v_sgmd.files.images import check_image
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.files.video import video_writer
from lightx2v_sgmd.outputs import OutputLock, locked_folder
from lightx2v_sgmd.system.console import note, progress
from lightx2v_sgmd.system.errors import RunError, UserError

GUIDANCE: Final = 5.0
"""The teacher's guidance scale if neither the user nor a manifest gives one: Wan2.1's default."""
_TOGETHER: Final = 16
_TOKENS_AT_ONCE: Final = 2**15


def student_videos(
    source: VideoSource,
    prompts: Sequence[str],
    size: VideoFacts,
    options: EvaluateOptions,
    out: Path,
    quiet: bool,
    images: Sequence[Path | None] = (),
) -> list[Path]:
    """Makes a student's videos by ``generate``, which leaves out those that exist.

    Args:
        source: The student.
        prompts: One for each video.
        size: The size to make.
        options: The options.
        out: The folder of this side's videos.
        quiet: Show no progress.
        images: The image that each video starts from; empty if none does.

    Raises:
        RunError: a video could not be made.
    """
    from infer import GenerateOptions, generate_files
    from lightx2v_sgmd.system.caches import cache_folder

    chosen = GenerateOptions(
        seed=options.seed,
        height=size.height,
        width=size.width,
        num_frames=size.num_frames,
        device=options.device,
        text_cache=cache_folder("text"),
    )
    outcome = generate_files(source.path, list(prompts), out, chosen, quiet=quiet, images=images)
    if outcome.failed:
        name, reason = outcome.failed[0]
        raise RunError(
            f"{len(outcome.failed)} of {len(prompts)} videos failed, first {name}: {reason}; run "
            "the same command again to make these"
        )
    return outcome.files


def guidance_of(options: EvaluateOptions, sources: Sequence[VideoSource | None]) -> float:
    """The teacher's guidance scale: the option, else the one a student was trained with, else 5."""
    if options.guidance_scale is not None:
        return options.guidance_scale
    manifests = [source.manifest for source in sources if source is not None]
    return next((m.guidance_scale for m in manifests if m is not None), GUIDANCE)


def with_second_scale(options: EvaluateOptions, sources: Sequence[VideoSource]) -> EvaluateOptions:
    """The options with the second expert's scale of a student's training, if none is given."""
    manifests = [source.manifest for source in sources if source.manifest is not None]
    if not manifests or (options.guidance_scale, options.guidance_scale_2) != (None, None):
        return options
    return replace(options, guidance_scale_2=manifests[0].guidance_scale_2)


def guidance_facts(
    options: EvaluateOptions, source: VideoSource, sources: Sequence[VideoSource]
) -> dict[str, Any]:
    """The guidance of a teacher's videos, and their network evaluations, for ``metrics.json``.

    Args:
        options: The options.
        source: The teacher.
        sources: All sides; see ``guidance_of``.
    """
    scale, second = guidance_of(options, sources), _second_scale(options, source)
    facts: dict[str, Any] = {"guidance_scale": scale}
    if second is not None:
        facts["guidance_scale_2"] = second
    return {**facts, "nfe": options.steps * (1 if {scale, second or scale} == {1} else 2)}


def _second_scale(options: EvaluateOptions, source: VideoSource) -> float | None:
    """The scale of a teacher's second expert; None if it has no second one, or none was given."""
    two = source.model is not None and len(source.model.experts) > 1
    return options.guidance_scale_2 if two else None


def check_guidance(options: EvaluateOptions, sources: Sequence[VideoSource]) -> None:
    """Refuses a guidance scale of a second expert if no teacher has one.

    Raises:
        UserError: no teacher has two experts.
    """
    teachers = [each.model for each in sources if each.kind == "teacher"]
    has_two = any(model is not None and len(model.experts) > 1 for model in teachers)
    if options.guidance_scale_2 is not None and not has_two:
        raise UserError(
            "--guidance-scale-2: is for the second expert of a teacher, and no teacher here has "
            "two; leave it out"
        )


def teacher_videos(
    source: VideoSource,
    prompts: Sequence[str],
    size: VideoFacts,
    guidance_scale: float,
    options: EvaluateOptions,
    out: Path,
    lock: OutputLock,
    quiet: bool,
    images: Sequence[Path | None] = (),
) -> list[Path]:
    """Makes a teacher's videos by its own sampler, each with a sidecar as ``generate`` writes it.

    Args:
        source: The teacher.
        prompts: One for each video.
        size: The size to make.
        guidance_scale: The teacher's guidance scale, in Ho and Salimans' form.
        options: The options.
        out: The folder of this side's videos.
        lock: The evaluation's lock.
        quiet: Show no progress.
        images: The image that each video starts from, the same for equal prompts; empty if none
            does.

    Raises:
        UserError: a file of that name exists that this program did not write.
    """
    import torch

    from infer.batch.outputs import check_own
    from infer.batch.requests import make_requests
    from infer.batch.sidecars import is_there, publish, sidecar
    from lightx2v_sgmd.sampling.sampler import VideoSampler
    from lightx2v_sgmd.sampling.teacher_steps import teacher_solver
    from lightx2v_sgmd.system.caches import cache_folder
    from lightx2v_sgmd.text.encoder_fingerprint import encoder_identity, weights_digest

    model = source.model
    assert model is not None, "a teacher has a model"
    requests = make_requests(list(prompts), options.seed, images)
    files = [out / f"{request.name}.mp4" for request in requests]
    check_own(files)
    device, dtype = device_and_dtype(options.device)
    solver = teacher_solver(model, steps=options.steps)
    negative_prompt = model.negative_prompt_for(options.negative_prompt)
    second = _second_scale(options, source)
    common = {
        **({} if second is None else {"guidance_scale_2": second}),
        **asdict(size),
        "solver": solver.to_dict(),
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "dtype": str(dtype).removeprefix("torch."),
        "version": __version__,
        "weights": weights_digest(model, "transformer", "vae"),
        "text_encoder": encoder_identity(model, model.text_dtype(dtype)),
    }
    starts = {request.prompt: request.image for request in requests if request.image is not None}
    digests = {prompt: {"image_sha256": check_image(image)} for prompt, image in starts.items()}
    about: list[dict[str, Any]] = [
        {"prompt": each.prompt, **digests.get(each.prompt, {}), "seed": each.seed, **common}
        for each in requests
    ]
    waiting = [
        index
        for index, file in enumerate(files)
        if not (sidecar(file).exists() and is_there(file, about[index]))
    ]
    if len(waiting) < len(files):
        note(f"{len(files) - len(waiting)} of {len(files)} videos are there already", quiet)
    if not waiting:
        return files
    pixels = (size.height, size.width, size.num_frames)
    _, frames, height, width = model.latent_shape(*pixels)
    together = max(1, min(_TOGETHER, _TOKENS_AT_ONCE // (frames * height * width)))
    done = len(files) - len(waiting)
    with progress(len(files), "sampling the teacher", quiet, done=done) as bar:
        sampler = VideoSampler(
            model,
            solver,
            pixels,
            guidance_scale,
            negative_prompt,
            batch=together,
            device=torch.device(device),
            dtype=dtype,
            images=starts,
            image_cache=cache_folder("text"),
            guidance_scale_2=second,
        )
        for start in range(0, len(waiting), together):
            group = waiting[start : start + together]
            videos = sampler(
                [requests[index].prompt for index in group],
                [requests[index].seed for index in group],
            )
            for index, video in zip(group, videos, strict=True):

                def appear(temporary: Path, index: int = index) -> None:
                    lock.check()
                    publish(temporary, files[index], about[index])

                with video_writer(files[index], size.fps, appear) as write:
                    write(video)
            bar.advance(len(group))
    return files


def range_videos(
    source: VideoSource,
    prompts: Sequence[str],
    size: VideoFacts,
    guidance_scale: float,
    options: EvaluateOptions,
    first: int,
    out: Path,
    quiet: bool,
    images: Sequence[Path | None] = (),
) -> list[Path]:
    """Makes a range of a model's videos in a folder of its own, which it locks meanwhile.

    Videos of it that are in other folders of the side are taken over.

    Args:
        source: The student or the teacher.
        prompts: One for each video of the range.
        size: The size to make.
        guidance_scale: A teacher's.
        options: The options of all videos.
        first: The index of the range's first video among all; its seed counts from it.
        out: The range's folder.
        quiet: Show no progress.
        images: The image that each video of the range starts from; empty if none does.
    """
    take_over(prompts, first, out, quiet)
    chosen = replace(options, seed=options.seed + first)
    if source.kind == "student":
        return student_videos(source, prompts, size, chosen, out, quiet, images)
    with locked_folder(out, "evaluate", quiet) as lock:
        return teacher_videos(
            source, prompts, size, guidance_scale, chosen, out, lock, quiet, images
        )


def device_and_dtype(device: str | None) -> tuple[str, Any]:
    """Chooses the device, a GPU if there is one, and the precision of networks on it.

    Raises:
        UserError: there is no such device.
    """
    import torch

    from infer.engine_plan import present_device

    chosen = present_device(device)
    return str(chosen), torch.bfloat16 if chosen.type == "cuda" else torch.float32
