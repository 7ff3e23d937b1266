"""Facts of the family from its public code: the settings that its authors sample with.

The source is https://github.com/Wan-Video/Wan2.1 at commit 9737cba, in the files named below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

NEGATIVE_PROMPT: Final = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，"
    "静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)
"""The prompt that Wan's sampler guides away from when it is given none.

It is ``sample_neg_prompt`` of ``wan/configs/shared_config.py``, exactly. It names bright colours,
overexposure, stillness, blur, subtitles, deformed limbs, walking backwards and the like.
"""

IMAGE_NEGATIVE_PROMPT: Final = f"镜头晃动，{NEGATIVE_PROMPT}"
"""The same for Wan2.1's image-to-video models, with "camera shake" before it.

It is ``sample_neg_prompt`` of ``wan/configs/wan_i2v_14B.py``.
"""

DEFAULT_SHIFT: Final = 5.0
"""Flow shift of Wan's text-to-video sampler (``generate.py``, ``sample_shift``)."""
SHIFT_BY_SIZE: Final[Mapping[tuple[int, int], float]] = {
    (40, 40): 5.0,
    (30, 12): 8.0,
    (30, 24): 5.0,
}
"""Flow shift by number of blocks and of attention heads: of 14B, of 1.3B and of Wan2.2's 5B.

14B has the default of ``generate.py``; for 1.3B the README recommends 8, with guidance 6. The 5B's
is ``sample_shift`` of Wan2.2's ``wan/configs/wan_ti2v_5B.py``.
"""
IMAGE_SHIFT: Final = 3.0
"""Flow shift of image-to-video at 480p (``generate.py``); a folder's scheduler may say another."""

WAN_FPS: Final = 16.0
WAN22_FPS: Final = 24.0
"""Frames per second of Wan2.1's videos, and of those that Wan2.2's own VAE decodes."""
WAN_FRAMES: Final = 81
WAN22_FRAMES: Final = 121
"""Number of frames of the same videos, 5 seconds.

They are ``frame_num`` of ``generate.py`` and of Wan2.2's ``wan/configs/wan_ti2v_5B.py``.
"""
WAN22_LATENT_CHANNELS: Final = 48

BOUNDARIES: Final[Mapping[str, float]] = {
    "Wan-AI/Wan2.2-T2V-A14B": 0.875,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": 0.875,
    "Wan-AI/Wan2.2-I2V-A14B": 0.9,
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": 0.9,
}
"""The time at which the two experts of a published model meet.

It is ``boundary`` of ``wan/configs/wan_t2v_A14B.py`` and ``wan_i2v_A14B.py`` in
https://github.com/Wan-Video/Wan2.2, and ``boundary_ratio`` of the model's ``model_index.json`` for
diffusers.
"""
EXPERTS_SHIFT: Final = 12.0
EXPERTS_IMAGE_SHIFT: Final = 5.0
"""Flow shift of Wan2.2's sampler for two experts, from text and from an image.

They are ``sample_shift`` of the same files.
"""

STUDENT_SHIFTS: Final = (8.0, 5.0)
"""Flow shifts of students of one network.

8 is that of SGMD's paper (arXiv 2605.30116, Sec. 4.1), and 5 that of LightX2V's trainer.
"""
EXPERTS_STUDENT_SHIFTS: Final = (5.0,)
"""Flow shift of students of two experts: that of the public four-step models of Wan2.2.

The steps 1000, 750, 500, 250 become 1000, 937.5, 833.333 and 625. Boundaries of 0.875 and of 0.9
both give two of them to each expert. The source is https://github.com/ModelTC/LightX2V at f8aee98:
``denoising_step_list``, ``sample_shift`` and ``boundary_step_index`` of
``configs/wan22/wan_moe_t2v_distill.json`` and of ``configs/distill/wan22`` for image-to-video.
"""


def shift_of_network(config: Mapping[str, Any], experts: int = 1) -> float | None:
    """The flow shift with which Wan's authors sample a network; None for one that is not theirs.

    Args:
        config: The arguments of ``WanTransformer3DModel``.
        experts: Number of the model's networks.
    """
    size = config.get("num_layers"), config.get("num_attention_heads")
    published = SHIFT_BY_SIZE.get(size)  # type: ignore[arg-type]
    from_image = config.get("in_channels") != config.get("out_channels")
    if published is not None and experts > 1:
        return EXPERTS_IMAGE_SHIFT if from_image else EXPERTS_SHIFT
    # The size of the video decides for Wan2.1's image-to-video, not the network.
    return None if from_image else published
