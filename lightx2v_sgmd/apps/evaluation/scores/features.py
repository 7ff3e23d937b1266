"""Features of videos in the teacher's own network, those of ``measures.network_features``.

The video is encoded first, and the network has an empty prompt. One that always starts from an
image is told of one without content.

Legend: F frames, H, W height and width, N videos, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightx2v_sgmd.apps.evaluation.measuring import SideVideos, frames_of
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.files.video import Frames
from lightx2v_sgmd.measures.network_features import features_expert, middle_features
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest
from lightx2v_sgmd.text.encoding import encode_prompts

RULES: Final = "middle block, mean over tokens, sigma 0.25, no prompt, 1"


class TeacherFeatures:
    """Takes features of videos in a model's network.

    Args:
        model: The teacher.
        device: The device of its networks.
        dtype: Precision of the networks.
    """

    def __init__(self, model: Model, device: str, dtype: torch.dtype) -> None:
        self.model, self.device = model, torch.device(device)
        text_dtype = model.text_dtype(dtype)
        rows = encode_prompts(model, [""], Ranks(device=self.device), text_dtype, cache=None)
        (self.row,) = rows
        expert = model.experts[features_expert(model)].model
        self.network: Any = expert.load_transformer(dtype, self.device).requires_grad_(False)
        self.vae = model.load_vae(device=self.device)

    @torch.no_grad()
    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """The features ``[D]`` of a video ``[F, H, W, 3]``.

        Frames beyond the last number of frames that the model takes are left out.

        Raises:
            UserError: the model cannot take a video of that size.
        """
        step = self.model.size_rules.step
        count = (len(frames) - 1) // step * step + 1
        self.model.latent_shape(frames.shape[1], frames.shape[2], count)
        video = torch.from_numpy(frames[:count]).permute(3, 0, 1, 2)[None].to(self.device)
        encoded = self.vae.encode(video.float() / 127.5 - 1).latent_dist.mode()
        x0 = self.model.normalized_latents(self.vae, encoded).float()

        always = self.model.takes_image == "always"  # an empty image, as the prompt is empty
        image = self.model.empty_image(x0.shape[2:]) if always else {}
        conditioning = self.model.conditioning([self.row.with_image(image)]).to(self.device)

        def run(x_t: Tensor, time: Tensor) -> Tensor:
            return self.model.predict(self.network, x_t, time, conditioning)

        return middle_features(self.model, self.network, run, x0)[0].cpu().numpy()


def teacher_features(
    load: Callable[[], TeacherFeatures], model: Model, videos: SideVideos
) -> NDArray[np.float64]:
    """The features ``[N, D]`` of one side's videos, kept by their content.

    Args:
        load: Loads the teacher, once a video has to be looked at.
        model: The teacher.
        videos: The videos.
    """

    def measure(index: int) -> list[float]:
        file = videos.files[index]
        try:
            values = load()(frames_of(file)[0])
        except UserError as error:
            text = str(error).replace("video.", "")
            raise UserError(f"{file}: {text}; or leave out the metric frechet") from error
        return [float(value) for value in values]

    rules = f"{RULES}, {weights_digest(model, 'transformer', 'vae')}"
    name, label = f"{videos.side}_features", f"the teacher's features of {videos.side}"
    return np.array(videos.measured(name, measure, label, rules), np.float64)
