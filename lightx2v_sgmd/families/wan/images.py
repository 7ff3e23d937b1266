"""The conditioning of Wan's networks on an image that a video starts from.

Wan2.1's image-to-video networks get latents of a video that is the image and then grey, and, by a
second cross-attention, the rows of CLIP's last layer but one. Wan2.2-TI2V-5B gets the latents of
the image alone, as the video's first latent frame. Both are computed as ``WanImageToVideoPipeline``
does, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.sources.parts import OWN_FILE, Source, read_json
from lightx2v_sgmd.families.wan.forward import normalized_latents
from lightx2v_sgmd.files.images import fitted
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.system.errors import UserError, with_remedy
from lightx2v_sgmd.system.optional_packages import prepare_libraries
from lightx2v_sgmd.system.quiet import no_library_bars, no_warnings
from lightx2v_sgmd.untrusted.building import build_vision_encoder, vision_config
from lightx2v_sgmd.untrusted.configs import IMAGE_PROCESSOR, check_image_processor

# C channels, T latent frames, h, w latent height and width, F frames, H, W, L rows, D their width

IMAGE_ROWS: Final = 257
"""Rows of the published CLIP: 16 x 16 patches and the class."""
_PROCESSOR_KEYS: Final = (*IMAGE_PROCESSOR, "size", "crop_size")


class ImageRows:
    """CLIP's image encoder with its preprocessing.

    Args:
        network: A ``CLIPVisionModel``, frozen.
        processor: A ``CLIPImageProcessor``.
    """

    def __init__(self, network: Any, processor: Any) -> None:
        self.network, self.processor = network, processor

    def __call__(self, image: Any) -> Tensor:
        """The rows ``[L, D]`` of Pillow's image, from the last layer but one."""
        pixels = self.processor(images=image, return_tensors="pt").pixel_values
        weight = next(self.network.parameters())
        states = self.network(pixels.to(weight), output_hidden_states=True).hidden_states
        rows: Tensor = states[-2][0]
        return rows


class WanImageEncoder:
    """Makes the tensors of a network's conditioning from an image.

    Args:
        vae: An ``AutoencoderKLWan``, frozen.
        spatial: Pixels per latent position.
        rows: CLIP, for networks that attend to the image.
        holds_first_frame: True for networks whose first latent frame is given.
    """

    def __init__(
        self, vae: Any, spatial: int, rows: Callable[[Any], Tensor] | None, holds_first_frame: bool
    ) -> None:
        self._vae, self._spatial, self._rows = vae, spatial, rows
        self._holds_first_frame = holds_first_frame

    @torch.no_grad()
    def encode(self, image: Any, size: tuple[int, int, int]) -> dict[str, Tensor]:
        """The tensors for one video, on the CPU, without a batch dimension.

        Args:
            image: Pillow's RGB image; what does not fit the video's shape is cut off at its sides.
            size: Height, width and number of frames of the video.

        Returns:
            ``first_frame [C, 1, h, w]``; or ``image_latents [C, T, h, w]`` and, with CLIP,
            ``image_rows [L, D]``.
        """
        prepare_libraries()
        from diffusers.video_processor import VideoProcessor

        height, width, num_frames = size
        image = fitted(image, height, width)
        processor = VideoProcessor(vae_scale_factor=self._spatial)
        weight = self._vae.post_quant_conv.weight
        pixels = processor.preprocess(image, height=height, width=width).to(weight)[:, :, None]
        if self._holds_first_frame:
            return {"first_frame": self._latents(pixels)}
        grey = pixels.new_zeros(*pixels.shape[:2], num_frames - 1, height, width)
        found = {"image_latents": self._latents(torch.cat([pixels, grey], dim=2))}
        if self._rows is not None:
            found["image_rows"] = self._rows(image).float().cpu()
        return found

    def _latents(self, video: Tensor) -> Tensor:
        encoded = self._vae.encode(video).latent_dist.mode()
        return normalized_latents(self._vae, encoded)[0].float().cpu()


def image_conditioning(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The image's part of a conditioning: what ``WanImageEncoder`` made for each video, batched.

    Args:
        each: The tensors for each video; empty for a video from text alone, which only networks
            with a held first frame make.

    Returns:
        The tensors of ``forward.predict`` by name; none if no video has an image.
    """
    first = next((tensors for tensors in each if tensors), None)
    if first is None:
        return {}
    if "first_frame" not in first:
        return {name: torch.stack([tensors[name] for tensors in each]) for name in first}
    empty = {"first_frame": torch.zeros_like(first["first_frame"])}
    return {
        "first_frame": torch.stack([(tensors or empty)["first_frame"] for tensors in each]),
        "is_given": torch.tensor([float(bool(tensors)) for tensors in each]),
    }


def load_image_rows(source: Source, device: torch.device | str) -> ImageRows:
    """Loads the folders ``image_encoder`` and ``image_processor`` of a model, in float32.

    Raises:
        UserError: they are missing, damaged or of another kind.
    """
    try:
        config = source.config("image_encoder") or {}
        weights = WholeTensors(source.files("image_encoder"))
        state = {name: weights.tensor(name).float() for name in weights.header.tensors}
        with no_library_bars():
            network = build_vision_encoder(vision_config(config), state)
        processor = _processor(source.image_processor() / "preprocessor_config.json")
    except UserError as error:
        raise UserError(f"teacher.path: image encoder of {source.root}: {error}") from error
    return ImageRows(network.eval().requires_grad_(False).to(device), processor)


def _processor(file: Path) -> Any:
    config = read_json(file)
    try:
        check_image_processor(config)
    except UserError as error:
        raise UserError(f"{file}: {with_remedy(str(error), OWN_FILE)}") from error
    prepare_libraries()
    with no_warnings("transformers"):
        from transformers import CLIPImageProcessor

        return CLIPImageProcessor(**{k: v for k, v in config.items() if k in _PROCESSOR_KEYS})
