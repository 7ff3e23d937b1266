"""How Wan's authors sample their models: facts of the family, from their public code.

The source is https://github.com/Wan-Video/Wan2.1 at commit 9737cba, in the files named below.
"""

from __future__ import annotations

from typing import Final

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
