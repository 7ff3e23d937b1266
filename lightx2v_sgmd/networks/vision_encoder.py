"""A frozen transformers vision encoder as the backbone of a pixel discriminator.

SAM's encoder, DINOv2, ViT and similar encoders fit: they give one hidden state for each layer,
tokens ``[N, 1 + h w, D]`` or a map ``[N, h, w, D]`` (arXiv 2507.18569, Sec. 4.2, App. B.1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightx2v_sgmd.files.tensors.safetensors_files import refuse_outside_links, weight_files
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.system.errors import UserError, with_remedy
from lightx2v_sgmd.system.quiet import no_library_bars
from lightx2v_sgmd.untrusted.building import (
    build_vision_encoder,
    empty_vision_encoder,
    vision_config,
)
from lightx2v_sgmd.untrusted.configs import check_vision_encoder
from lightx2v_sgmd.untrusted.fields import Real, Several, first_problem
from lightx2v_sgmd.untrusted.json_text import read_json_object

# N frames, h, w patches, D width, H, W pixels

SAM_VIT_B = {"model_type": "sam_vision_model"}
"""The configuration of SAM's ViT-B (arXiv 2507.18569, Sec. 4.2): all of transformers' defaults."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = 4
"""Number of layers with a head, evenly spaced: layers 3, 6, 9 and 12 of 12."""


def _config(path: str) -> Any:
    """The whole model's configuration, checked; transformers reads nothing by itself."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise UserError(
            f"method.vision_encoder: {path} is not a folder with a config.json; give the folder of "
            "a transformers vision encoder, for example SAM's"
        )
    try:
        refuse_outside_links(Path(path), [file, Path(path) / "preprocessor_config.json"])
        content = read_json_object(file)
        check_vision_encoder(content)
        return vision_config(content)
    except UserError as error:
        problem = with_remedy(_short(error, file), "copy the encoder again, or name another one")
        raise UserError(f"method.vision_encoder: {file}: {problem}") from error


def _short(error: UserError, file: Path) -> str:
    return str(error).removeprefix(f"{file}: ")


def _of_images(config: Any) -> Any:
    """The part of a configuration that describes the encoder of images."""
    return getattr(config, "vision_config", config)


def captured_layers(layers: int) -> list[int]:
    """Indices of the layers with a head, counted from 1 like the layers' outputs."""
    return sorted({max(1, layers * (i + 1) // HEADS) for i in range(HEADS)})


def vision_is_here(path: str) -> bool:
    """True if the folder has a configuration."""
    return (Path(path) / "config.json").is_file()


def vision_widths(path: str) -> tuple[int, ...]:
    """The width of each captured layer; reads the configuration only.

    Raises:
        UserError: the folder has no such encoder.
    """
    config = _of_images(_config(path))
    return (int(config.hidden_size),) * len(captured_layers(config.num_hidden_layers))


class VisionBackbone:
    """A frozen encoder; gradient flows through it to the frames.

    Args:
        path: The encoder's folder.
        device: Device on which it runs.

    Raises:
        UserError: the encoder is missing or cannot be loaded.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        whole = _config(path)
        try:
            weights = WholeTensors(weight_files(Path(path), "model"))
            state = {name: weights.tensor(name) for name in weights.header.tensors}
            with no_library_bars():
                model = build_vision_encoder(whole, state)
        except UserError as error:
            raise UserError(f"method.vision_encoder: {path}: {error}") from error
        self._take(model, whole, device, *_normalisation(Path(path)))

    @classmethod
    def planned(cls, path: str) -> VisionBackbone:
        """Builds the encoder without weights, on the meta device, to plan a job.

        A folder that is not there yet stands for SAM's ViT-B, the paper's encoder.
        """
        whole = _config(path) if vision_is_here(path) else vision_config(SAM_VIT_B)
        backbone = cls.__new__(cls)
        meta = torch.device("meta")
        backbone._take(empty_vision_encoder(whole), whole, meta, IMAGENET_MEAN, IMAGENET_STD)
        return backbone

    def _take(self, model: Any, whole: Any, device: torch.device, mean: Any, std: Any) -> None:
        config = _of_images(whole)
        encoder = getattr(model, "vision_encoder", getattr(model, "vision_model", model))
        self.network: nn.Module = encoder.eval().requires_grad_(False).to(device)
        self.size = int(config.image_size)
        # SAM's own preprocessing keeps the picture's shape and pads it; the others take a square.
        self._pads = str(config.model_type).startswith("sam")
        self.layers = captured_layers(config.num_hidden_layers)
        self.widths = (int(config.hidden_size),) * len(self.layers)
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    def features(self, frames: Tensor) -> list[Tensor]:
        """Maps ``[N, 3, H, W]`` in [-1, 1] to one map ``[N, D, h, w]`` for each captured layer.

        For SAM the longer side fills the encoder's square, the rest is zero after normalisation, as
        in its own preprocessing, and the maps are cut to what the picture covers. Other encoders
        see the picture stretched to a square.
        """
        height, width = self._fitted(*frames.shape[-2:])
        pixels = nn.functional.interpolate(frames, (height, width), mode="bilinear", antialias=True)
        pixels = (pixels / 2 + 0.5 - self._mean) / self._std
        pixels = nn.functional.pad(pixels, (0, self.size - width, 0, self.size - height))
        states = self.network(pixels, output_hidden_states=True).hidden_states
        maps = [_as_map(states[layer]) for layer in self.layers]
        return [
            m[..., : self._covered(m.shape[-2], height), : self._covered(m.shape[-1], width)]
            for m in maps
        ]

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        """The size to which a picture is resized before it is padded."""
        if not self._pads:
            return self.size, self.size
        scale = self.size / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def _covered(self, places: int, pixels: int) -> int:
        """The number of places along a side that the picture covers, the last one in part."""
        return -(-places * pixels // self.size)


def _as_map(state: Tensor) -> Tensor:
    if state.ndim == 4:
        return state.permute(0, 3, 1, 2)
    side = int((state.shape[1]) ** 0.5)
    patches = state[:, state.shape[1] - side * side :]  # class and register tokens come first
    return patches.transpose(1, 2).reshape(len(state), -1, side, side)


def _normalisation(folder: Path) -> tuple[Any, Any]:
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        saved = read_json_object(file)
        problem = first_problem(saved, {"image_mean": _CHANNELS, "image_std": _CHANNELS})
        if problem is not None:
            raise UserError(f"{file}: {problem}; copy it again")
    except UserError as error:
        raise UserError(f"method.vision_encoder: {error}") from error
    return saved.get("image_mean", IMAGENET_MEAN), saved.get("image_std", IMAGENET_STD)


_CHANNELS = Several(Real(1e-6, 1e4), 3, 3)
