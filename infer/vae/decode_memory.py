"""The memory that decoding a chunk of a video takes, from the VAE's configuration alone.

``tests/infer/vae/test_decode_memory.py`` meters the decoder and holds the formula to it.

H, W height and width of a stage, T frames of a chunk there, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from infer.vae.decoding import FRAMES_AT_ONCE, Tiling, videos_at_once
from lightx2v_sgmd.system.host_memory import GIB


@dataclass(frozen=True)
class _Stage:
    """One resolution of the decoder.

    Attributes:
        channels_in: Channels that come in.
        channels: Channels inside.
        channels_out: Channels that go to the next stage; 0 at the last one.
        growth: Frames per latent frame.
        pixels: Positions of the stage per pixel of the video.
        doubles_time: True if its upsampling doubles the frames.
    """

    channels_in: int
    channels: int
    channels_out: int
    growth: int
    pixels: float
    doubles_time: bool


def _stages(config: Mapping[str, Any]) -> list[_Stage]:
    base = int(config.get("decoder_base_dim") or config.get("base_dim") or 96)
    multiples = [*config.get("dim_mult", (1, 2, 4, 4))][::-1]
    in_time = [*config.get("temperal_downsample", (False, True, True))][::-1]
    patch = int(config.get("patch_size") or 1)
    residual = bool(config.get("is_residual"))
    stages: list[_Stage] = []
    incoming, growth = base * multiples[0], 1
    for index, multiple in enumerate(multiples):
        last = index == len(multiples) - 1
        channels = base * multiple
        out = 0 if last else channels if residual else channels // 2
        pixels = 1 / patch**2 / 4 ** (len(multiples) - 1 - index)
        doubles = not last and bool(in_time[index])
        stages.append(_Stage(incoming, channels, out, growth, pixels, doubles))
        incoming, growth = out, growth * (2 if doubles else 1)
    return stages


def remembered_numbers(config: Mapping[str, Any]) -> float:
    """Numbers per pixel of a video that its convolutions remember between chunks."""
    blocks = int(config.get("num_res_blocks", 2)) + 1
    stages = _stages(config)
    first = stages[0]
    numbers = first.pixels * (int(config.get("z_dim", 16)) + 4 * first.channels_in)
    for stage in stages:
        numbers += stage.pixels * (stage.channels_in + (2 * blocks - 1) * stage.channels)
        numbers += stage.pixels * stage.channels * stage.doubles_time
    return 2 * (numbers + stages[-1].pixels * stages[-1].channels)


def busy_numbers(config: Mapping[str, Any], frames_at_once: int) -> float:
    """Numbers per pixel that decoding one chunk holds beside them at its highest."""
    residual = bool(config.get("is_residual"))
    highest = 0.0
    for stage in _stages(config):
        frames = stage.growth * frames_at_once
        before = frames * stage.channels_in * residual
        width = max(stage.channels_in, stage.channels)
        # A residual block: its input, a convolution's input with two frames more, and its output.
        numbers = before + (3 * frames + 2) * width
        if stage.channels_out:
            longer = frames * (2 if stage.doubles_time else 1)
            # The input, for some in time as well, the enlarged input, and the output.
            entering = frames * stage.channels * (3 if stage.doubles_time else 1)
            enlarged, output = (4 * longer * c for c in (stage.channels, stage.channels_out))
            numbers = max(numbers, before + entering + enlarged + output)
            # The shortcut repeats the input to the output's size, and copies it into its order.
            numbers = max(numbers, before + 3 * output * residual)
        highest = max(highest, numbers * stage.pixels)
    return highest


def decode_gib(
    config: Mapping[str, Any],
    size: tuple[int, int, int],
    videos: int = 1,
    frames_at_once: int = FRAMES_AT_ONCE,
    tiling: Tiling | None = None,
    ranks: int = 1,
    bytes_each: int = 4,
) -> float:
    """Peak memory of decoding, in GiB, without the weights.

    Args:
        config: The VAE's configuration.
        size: Height, width and number of frames of the videos.
        videos: Videos in the batch, of which ``videos_at_once`` are decoded together.
        frames_at_once: Latent frames per chunk.
        tiling: Tiles that are decoded one by one.
        ranks: Processes that share the tiles.
        bytes_each: Bytes of a number in the VAE's precision.
    """
    height, width, num_frames = size
    together = min(videos, videos_at_once(height, width))
    pixels = height * width * together
    busy = busy_numbers(config, frames_at_once)
    remembered = remembered_numbers(config)
    chunk = 3 * frames_at_once * _stages(config)[-1].growth
    if tiling is None or not tiling.needed(height, width):
        numbers = pixels * (max(busy, _COPIES_OF_FRAMES * chunk) + remembered)
        return bytes_each * numbers / GIB
    tile = min(tiling.size, height) * min(tiling.size, width) * together
    decoded = tiling.decoded_pixels(height, width) * together
    if ranks == 1:
        # A tile is decoded to its end before the next one; then all of them are joined.
        numbers = 3 * num_frames * decoded
        numbers += max((busy + remembered) * tile, _COPIES_OF_FRAMES * chunk * pixels)
    else:
        tiles = tiling.count(height, width)
        share = -(-tiles // ranks) / tiles
        numbers = share * decoded * remembered + chunk * decoded
        numbers += max(busy * tile, _COPIES_OF_FRAMES * chunk * pixels)
    return bytes_each * numbers / GIB


_COPIES_OF_FRAMES: Final = 3.0
"""A chunk's frames as they come, without patches, clamped; or rows of tiles, joined, clamped."""
