"""The options of an evaluation, and the metrics that it knows."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightx2v_sgmd.apps.evaluation.scores.videoalign import SCORES, weights_folder
from lightx2v_sgmd.schedule import MOST_STEPS
from lightx2v_sgmd.system.errors import UserError, joined, shortened


@dataclass(frozen=True)
class Metric:
    """A metric, as reports describe it.

    Attributes:
        title: The name that readers see.
        meaning: The rule by which it is computed, a sentence.
        digits: Decimals in tables.
        key: The value of a video's measurements that it is the mean of; "" for a metric of a whole
            set of videos.
    """

    title: str
    meaning: str
    digits: int = 3
    key: str = ""


METRICS: Final = {
    "optflow": Metric(
        "OptFlow",
        "Mean length of the optical flow (OpenCV's DIS) over all pixels and pairs of frames, in "
        "pixels per frame, as in Table 1 of arXiv 2605.30116, whose flow is UniMatch's. Zero "
        "where a picture has no contrast",
        key="optflow",
    ),
    "dyndeg": Metric(
        "DynDeg",
        "Share of videos that are dynamic by VBench's rule (arXiv 2311.17982): looked at with 8 "
        "frames per second, in at least a quarter of the frames the fastest 5% of the pixels move "
        "more than 6 pixels for a shorter side of 256",
        key="dynamic",
    ),
    "motion": Metric(
        "Slow and fast videos",
        "Share of videos whose OptFlow is below the reference's first quartile, and above its "
        "third: 0.25 each for a set that moves as the reference does. The distance is the "
        "Wasserstein-1 distance of the two distributions, in pixels per frame",
    ),
    "flicker": Metric(
        "Flicker",
        "Mean absolute difference of luma (0 to 255) between a frame and the next one, moved back "
        "along the optical flow so that motion does not count",
        key="flicker",
    ),
    "change": Metric(
        "Change",
        "Mean absolute difference of luma (0 to 255) between a frame and the next one, motion "
        "included",
        key="change",
    ),
    "sharpness": Metric(
        "Sharpness",
        "Variance of the Laplacian of luma (0 to 255), mean over frames",
        digits=1,
        key="sharpness",
    ),
    "colourfulness": Metric(
        "Colourfulness",
        "Hasler and Suesstrunk's M (SPIE 2003): spread plus 0.3 of the offset of the opponent "
        "colours R - G and (R + G)/2 - B; 15 is slightly and 59 quite colourful",
        digits=2,
        key="colourfulness",
    ),
    "brightness": Metric("Brightness", "Mean luma, 0 black to 1 white", key="brightness"),
    "contrast": Metric(
        "Contrast", "Standard deviation of luma within a frame, 0 to 0.5", key="contrast"
    ),
    "saturation": Metric(
        "Saturation", "Mean saturation of HSV, (max - min) / max of a pixel", key="saturation"
    ),
    "diversity": Metric(
        "Diversity",
        "Mean over prompts, and over pairs of seeds, of the root mean square difference of all "
        "pixel values (0 to 1); large frames are first reduced to 64 pixels on the shorter side. "
        "Needs --seeds 2 or more",
    ),
    "frechet": Metric(
        "Frechet",
        "Frechet distance of the two sets in the teacher's own features: the output of its middle "
        "block, mean over all tokens, for the video's latents with a quarter of fixed noise "
        "(sigma 0.25) and an empty prompt. It depends on the number of videos, so compare only "
        "equal numbers; the floor is the distance of two random halves of the reference",
    ),
    "clip": Metric(
        "CLIP score",
        "100 max(cos, 0) of CLIP's features of a frame and of the prompt (arXiv 2104.08718), mean "
        "over all frames, with the network that --clip names. Other networks give other numbers",
        digits=2,
        key="clip",
    ),
    "videoalign": Metric(
        "VideoAlign",
        "Sum of VideoAlign's three scores (arXiv 2501.13918), each normalised as its own code does "
        "it: a network that was trained on people's judgement. Computed by the program and weights "
        "that --videoalign names",
        key="videoalign",
    ),
    "videoalign_vq": Metric(
        "VideoAlign, visual quality", "VideoAlign's VQ: how good frames look", key="videoalign_vq"
    ),
    "videoalign_mq": Metric(
        "VideoAlign, motion quality",
        "VideoAlign's MQ: how stable, natural and large the motion is",
        key="videoalign_mq",
    ),
    "videoalign_ta": Metric(
        "VideoAlign, text alignment",
        "VideoAlign's TA: how well the video fits its prompt",
        key="videoalign_ta",
    ),
    "fvd": Metric(
        "FVD",
        "Frechet Video Distance (arXiv 1812.01717): the same distance in the 400 logits of the "
        "I3D network that --i3d names, called with rescale, resize and return_features, on all "
        "frames of every video. It depends on the number of videos",
        digits=1,
    ),
}
"""All metrics, by the names that ``--metrics`` takes."""
OUTSIDE: Final = {
    "clip": "--clip DIR",
    **dict.fromkeys(SCORES, "--videoalign DIR"),
    "fvd": "--i3d FILE",
}
"""Metrics that need weights from elsewhere, and the option that names them."""


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of an evaluation.

    Attributes:
        metrics: Names from ``METRICS``; none means all that can be computed.
        seeds: Videos of each prompt.
        seed: Seed of the first video; later ones count up, and the videos of a second seed begin
            after the last prompt's.
        teacher: The model in whose features the Frechet distance is taken; by default the teacher
            among the two that are compared.
        guidance_scale: A teacher's guidance (Ho-Salimans form); by default that of the student's
            training, else 5.
        guidance_scale_2: The guidance of a teacher's second expert; by default that of the
            student's training if ``guidance_scale`` is not given either, else the first one's.
        negative_prompt: Prompt that a teacher's guidance leads away from; default its authors' own.
        steps: Steps of a teacher's sampler.
        height: In pixels; default as trained.
        width: In pixels; default as trained.
        num_frames: ``4k + 1``; default as trained.
        i3d: TorchScript file of an I3D network, for FVD.
        clip: Folder of a transformers ``CLIPModel``, for the CLIP score.
        videoalign: A checkout of VideoAlign with its weights, for its scores.
        videoalign_python: The Python that VideoAlign runs in; default this one.
        shown: The most prompts whose videos are in the report.
        device: ``cpu`` or ``cuda``; default a GPU if there is one.
    """

    metrics: tuple[str, ...] = ()
    seeds: int = 1
    seed: int = 0
    teacher: str | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    negative_prompt: str | None = None
    steps: int = 50
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    i3d: Path | None = None
    clip: Path | None = None
    videoalign: Path | None = None
    videoalign_python: Path | None = None
    shown: int = 16
    device: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("steps", 1), ("shown", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}: {getattr(self, name)} is too few; use {least} or more")
        if self.steps > MOST_STEPS:
            raise UserError(f"--steps: {self.steps} is more than {MOST_STEPS}; use fewer")
        for option, scale in (
            ("--guidance-scale", self.guidance_scale),
            ("--guidance-scale-2", self.guidance_scale_2),
        ):
            if scale is not None and not 1 <= scale <= 100:
                raise UserError(f"{option}: {scale:g} is out of range; use 1 (none) to 100")
        check_names(self.metrics)
        if self.i3d is not None and not self.i3d.is_file():
            raise UserError(f"--i3d: {self.i3d} does not exist; name a TorchScript file of I3D")
        if self.clip is not None and not (self.clip / "config.json").is_file():
            raise UserError(
                f"--clip: {self.clip} has no config.json; name the folder of a transformers "
                "CLIPModel, such as openai/clip-vit-large-patch14"
            )
        if self.videoalign is not None:
            weights_folder(self.videoalign)
        elif self.videoalign_python is not None:
            raise UserError("--videoalign-python: has no meaning without --videoalign DIR; add it")


def check_names(metrics: Sequence[str]) -> None:
    """Raises if a metric is unknown.

    Raises:
        UserError: names the nearest known metric.
    """
    for name in metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, 1)
            known = joined(list(METRICS), len(METRICS))
            hint = f"did you mean {near[0]}?" if near else f"use {known}"
            raise UserError(f"--metrics: {shortened(name)!r} is unknown; {hint}")


def chosen_metrics(options: EvaluateOptions, against: bool, model: bool) -> tuple[str, ...]:
    """The metrics to compute: those asked for, else all that can be.

    Args:
        options: The options.
        against: True if there is a reference.
        model: True if there is a teacher whose features can be taken.

    Raises:
        UserError: a metric was asked for that cannot be computed; says what it needs.
    """
    reasons = {}
    if not against:
        for name in ("motion", "frechet", "fvd"):
            reasons[name] = "compares with a reference; add --against DIR"
    if not model:
        reasons.setdefault("frechet", "needs a teacher's features; add --teacher DIR")
    if options.seeds < 2:
        reasons["diversity"] = "needs several videos of a prompt; add --seeds 2 or more"
    for name, option in OUTSIDE.items():
        if getattr(options, option.split()[0].removeprefix("--")) is None:
            reasons.setdefault(name, f"needs weights from elsewhere; add {option}")
    for name in options.metrics:
        if name in reasons:
            raise UserError(f"--metrics: {name} {reasons[name]}")
    wanted = options.metrics or tuple(METRICS)
    return tuple(name for name in METRICS if name in wanted and name not in reasons)
