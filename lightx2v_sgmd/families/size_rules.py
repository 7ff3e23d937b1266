"""The sizes of videos that a model can make. Importing this imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from lightx2v_sgmd.system.errors import UserError

# C channels, T latent frames, h, w latent height and width

Size = tuple[int, int, int]
"""Height, width and number of frames of a video."""


@dataclass(frozen=True)
class SizeRules:
    """The rules that a video's size must meet.

    Attributes:
        temporal: Frames per latent frame, after the first one.
        spatial: Pixels per latent position, in height and width.
        patch: Latent frames, height and width of one token.
        channels: Channels of the latents.
        most_positions: The most tokens that the model tells apart in each direction.
        images: True for a model that makes images, which are videos of one frame here.
        multiple: Pixels that divide height and width, whatever the patch; stock pipelines of video
            models ask for 16.
        frame_step: Step of the numbers of frames that the VAE takes, ``frame_step k + 1``; None is
            ``temporal``.
    """

    temporal: int
    spatial: int
    patch: tuple[int, int, int]
    channels: int
    most_positions: int
    images: bool = False
    multiple: int = 16
    frame_step: int | None = None

    @property
    def suffix(self) -> str:
        """The suffix of the files that show what the model makes."""
        return ".png" if self.images else ".mp4"

    def latent_shape(self, height: int, width: int, num_frames: int) -> tuple[int, int, int, int]:
        """``(C, T, h, w)`` of a video's latents.

        Raises:
            UserError: the model cannot make a video of that size.
        """
        _, patch_h, patch_w = self.patch
        if self.images and num_frames != 1:
            raise UserError(
                f"video.num_frames: is {num_frames}, but this model makes images; leave it out"
            )
        if num_frames < 1 or (num_frames - 1) % self.step:
            raise UserError(
                f"video.num_frames: {num_frames} is not {self.step}k + 1, which this model's "
                f"VAE needs; use {self.nearest_frames(num_frames)}"
            )
        for name, value, patch in (("height", height, patch_h), ("width", width, patch_w)):
            multiple = max(self.multiple, self.spatial * patch)
            if value < multiple or value % multiple:
                near = max(1, round(value / multiple)) * multiple
                raise UserError(
                    f"video.{name}: {value} is not divisible by {multiple}, which this model "
                    f"needs; use {near}"
                )
        latents = (
            (num_frames - 1) // self.temporal + 1,
            height // self.spatial,
            width // self.spatial,
        )
        names = ("num_frames", "height", "width")
        for name, count, patch in zip(names, latents, self.patch, strict=True):
            if count // patch > self.most_positions:
                raise UserError(
                    f"video.{name}: gives {count // patch} positions, more than the "
                    f"{self.most_positions} that this model tells apart; use a smaller one"
                )
        return self.channels, *latents

    def nearest_frames(self, num_frames: float) -> int:
        """The number of frames nearest to a wish that the model can make."""
        if self.images:
            return 1
        return max(0, round((num_frames - 1) / self.step)) * self.step + 1

    @property
    def step(self) -> int:
        """Step of the numbers of frames: they are ``step k + 1``."""
        return self.temporal if self.frame_step is None else self.frame_step
