"""The CLIP score (arXiv 2104.08718): how well the frames of a video fit its prompt.

It is 100 max(cos, 0) of CLIP's features of a frame and of the prompt, mean over all frames. Frames
are prepared as CLIP's own code does: shorter side to the network's size (bicubic), centre cut out,
normalised. The folder is that of a transformers ``CLIPModel``, for example
openai/clip-vit-large-patch14.

Legend: F frames, H height, W width, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from lightx2v_sgmd.apps.evaluation.measuring import SideVideos, frames_of
from lightx2v_sgmd.files.tensors.safetensors_files import refuse_outside_links, weight_files
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.files.video import Frames
from lightx2v_sgmd.outputs import content_hashes
from lightx2v_sgmd.system.errors import UserError, with_remedy
from lightx2v_sgmd.system.quiet import no_library_bars
from lightx2v_sgmd.untrusted.building import build_vision_encoder, vision_config
from lightx2v_sgmd.untrusted.configs import check_vision_encoder
from lightx2v_sgmd.untrusted.fields import Real, Several, first_problem
from lightx2v_sgmd.untrusted.json_text import read_json_object
from lightx2v_sgmd.untrusted.tokenizer import load_tokenizer

MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""The normalisation of OpenAI's networks, where ``preprocessor_config.json`` says none."""
_FILES: Final = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
_TOGETHER: Final = 16
_CHANNELS: Final = Several(Real(1e-6, 1e4), 3, 3)


def check_clip(folder: Path) -> None:
    """Looks at a folder without reading weights.

    Raises:
        UserError: it has no ``CLIPModel``.
    """
    remedy = "name the folder of a transformers CLIPModel, such as openai/clip-vit-large-patch14"
    if not (folder / "config.json").is_file():
        raise UserError(f"--clip: {folder} has no config.json; {remedy}")
    try:
        content = read_json_object(folder / "config.json")
        check_vision_encoder(content)
        if content.get("model_type") != "clip":
            raise UserError(f"{folder}: is not a CLIPModel; {remedy}")
        weight_files(folder, "model")
        load_tokenizer(folder)
    except UserError as error:
        raise UserError(f"--clip: {with_remedy(str(error), remedy)}") from error


class Clip:
    """A CLIP network.

    Args:
        folder: The folder of a transformers ``CLIPModel``.
        device: The device that it runs on.

    Raises:
        UserError: the folder is none, or what is in it does not fit together.
    """

    def __init__(self, folder: Path, device: str) -> None:
        check_clip(folder)
        try:
            files = weight_files(folder, "model")
            refuse_outside_links(folder, [*files, *(folder / name for name in _FILES)])
            config = vision_config(read_json_object(folder / "config.json"))
            weights = WholeTensors(files)
            state = {name: weights.tensor(name).float() for name in weights.header.tensors}
            with no_library_bars():
                model = build_vision_encoder(config, state)
            missing = {name for name, _ in model.named_parameters()} - set(state)
            if missing:
                raise UserError(f"{folder}: the weights lack {min(missing)}; copy them again")
            self._tokenizer = load_tokenizer(folder)
            mean, std = _normalisation(folder)
        except UserError as error:
            raise UserError(f"--clip: {error}") from error
        self._model = model.eval().requires_grad_(False).to(device)
        self._device = device
        self._tokens = int(config.text_config.max_position_embeddings)
        self._size = int(config.vision_config.image_size)
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    @torch.no_grad()
    def score(self, frames: Frames, prompt: str) -> float:
        """The score of a video ``[F, H, W, 3]``, from 0 to 100.

        A prompt that is longer than the network's 77 tokens is cut, as CLIP's users do.
        """
        tokens = self._tokenizer(
            prompt, truncation=True, max_length=self._tokens, return_tensors="pt"
        )
        ids = tokens["input_ids"].to(self._device)
        text = _features(self._model.get_text_features(input_ids=ids))
        images = torch.cat(
            [
                _features(self._model.get_image_features(pixel_values=self._pixels(part)))
                for part in np.array_split(frames, -(-len(frames) // _TOGETHER))
            ]
        )
        return float((100 * (images @ text.T)).clamp(min=0).mean())

    def _pixels(self, frames: Frames) -> Tensor:
        """Frames as the network takes them."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        return (centre(pixels.to(self._device), self._size) / 255 - self._mean) / self._std


def centre(pixels: Tensor, size: int) -> Tensor:
    """The middle ``size`` x ``size`` of pictures ``[F, 3, H, W]``, whose shorter side became that.

    Values stay from 0 to 255.
    """
    height, width = pixels.shape[-2:]
    scale = size / min(height, width)
    shape = (max(size, int(height * scale)), max(size, int(width * scale)))
    resized = interpolate(pixels.float(), shape, mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return resized.round()[..., top : top + size, left : left + size]


def clip_scores(load: Callable[[], Clip], folder: Path, videos: SideVideos) -> list[float]:
    """The score of each video of one side, kept by the video's content and its prompt.

    Args:
        load: Loads the network, once a video has to be looked at.
        folder: The network's folder.
        videos: The videos.
    """
    network = " ".join(content_hashes(weight_files(folder, "model")))

    def score(file: Path, prompt: str) -> float:
        return load().score(frames_of(file)[0], prompt)

    name, label = f"{videos.side}_clip", f"CLIP score of {videos.side}"
    return [float(value) for value in videos.scored(name, score, label, f"clip 1, {network}")]


def _features(output: Any) -> Tensor:
    """Features ``[N, D]`` of length 1; transformers gives them as a tensor or within an output."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return normalize(features.float(), dim=-1)


def _normalisation(folder: Path) -> tuple[Any, Any]:
    """Mean and standard deviation of each channel."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return MEAN, STD
    saved = read_json_object(file)
    problem = first_problem(saved, {"image_mean": _CHANNELS, "image_std": _CHANNELS})
    if problem is not None:
        raise UserError(f"{file}: {problem}; copy it again")
    return saved.get("image_mean", MEAN), saved.get("image_std", STD)
