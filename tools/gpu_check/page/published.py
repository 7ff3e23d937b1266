"""The best published figures that ours are read beside, and what each was measured on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A figure that others published.

    Attributes:
        what: The thing that was measured.
        machine: The machine it was measured on.
        figure: The figure, as published.
        source: The publication.
        ours: The figure of ours beside which it is read: a key of ``goals.figures``, or "".
    """

    what: str
    machine: str
    figure: str
    source: str
    ours: str = ""


BEST = (
    Published(
        "a forward, Wan2.2-T2V-A14B (blocks of the same shape), 832x480, 81 frames, bf16, eager",
        "H200",
        "2.57 s (5.142 s a step with guidance, which is two forwards), about 90 GiB",
        "SGLang, [sgl-project/sglang#25483](https://github.com/sgl-project/sglang/issues/25483), "
        "comment of 2026-05-16",
        "forward_s",
    ),
    Published(
        "a forward, Wan2.1-I2V-14B 480p, 81 frames, bf16",
        "H100",
        "2.59 s (5.18 s a step with guidance); by the same table SGLang 3.07, FastVideo 3.68, "
        "xDiT 4.47, diffusers 4.89",
        "[LightX2V](https://github.com/ModelTC/LightX2V), README, December 2025",
        "forward_s",
    ),
    Published(
        "fp8 instead of bf16, Wan2.2-T2V-A14B",
        "H100",
        "3.8 % faster (204.09 to 196.28 s of denoising)",
        "SGLang, [sgl-project/sglang#22365](https://github.com/sgl-project/sglang/issues/22365)",
        "fp8_gain",
    ),
    Published(
        "a whole 4-step video, Wan2.1-I2V-14B 480p, fp8 and SageAttention (approximate)",
        "H200",
        "14 s",
        "[LightX2V](https://github.com/ModelTC/LightX2V), README",
        "video_s",
    ),
    Published(
        "a 14B 480p video of few steps, sparse attention and int8, without text and decode",
        "RTX 5090",
        "9.9 s",
        "[TurboDiffusion](https://github.com/thu-ml/TurboDiffusion), README",
        "denoise_s",
    ),
)
