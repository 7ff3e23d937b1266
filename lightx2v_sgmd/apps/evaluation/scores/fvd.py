"""FVD, the Frechet Video Distance (arXiv 1812.01717), with an I3D network that the user has.

The file is the TorchScript one that StyleGAN-V published and most papers use
(``i3d_torchscript.pt``). It is called as there: float32 ``[1, 3, F, H, W]`` from 0 to 255, with
``rescale`` (to -1 ... 1), ``resize`` (to 224 x 224) and ``return_features``, which gives the 400
logits. All frames of a video are taken. A TorchScript file is a program: take it from a source that
you trust.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from lightx2v_sgmd.apps.evaluation.measuring import SideVideos, frames_of
from lightx2v_sgmd.files.video import Frames
from lightx2v_sgmd.outputs import content_hash
from lightx2v_sgmd.system.errors import UserError, first_line, short_line

LEAST_FRAMES: Final = 9
"""I3D halves the frames three times and then takes the mean of two."""


_REMEDY: Final = "name StyleGAN-V's i3d_torchscript.pt"


def check_i3d(file: Path, num_frames: Sequence[int] = ()) -> None:
    """Refuses a file that is no TorchScript, and videos that are too short; loads nothing.

    Args:
        file: The network's file.
        num_frames: The numbers of frames of the videos that will be made.

    Raises:
        UserError: says which it is.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            has_code = any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        has_code = False
    if not has_code:
        raise UserError(f"--i3d: {file} is not a TorchScript file; {_REMEDY}")
    if num_frames and min(num_frames) < LEAST_FRAMES:
        raise UserError(
            f"--num-frames: videos would have {min(num_frames)} frames, and FVD needs "
            f"{LEAST_FRAMES} or more; give a larger --num-frames, or leave out --i3d"
        )


def load_i3d(file: Path, device: str) -> Any:
    """Loads the network.

    Raises:
        UserError: the file is no TorchScript.
    """
    try:
        network: Any = torch.jit.load(str(file), map_location=device)  # type: ignore[no-untyped-call]
        return network.eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"--i3d: {file} cannot be loaded as TorchScript ({short_line(first_line(error), 80)}); "
            f"{_REMEDY}"
        ) from error


@torch.no_grad()
def i3d_features(network: Any, frames: Frames, device: str) -> NDArray[np.float32]:
    """The logits ``[400]`` of a video ``[F, H, W, 3]``.

    Raises:
        UserError: the network does not take such a call.
    """
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float().to(device)
    try:
        features = network(video, rescale=True, resize=True, return_features=True)
        values: NDArray[np.float32] = features.reshape(-1).float().cpu().numpy()
        return values
    except (RuntimeError, TypeError, AttributeError) as error:
        # TorchScript's last line has the reason; the others are where it was.
        reason = short_line((str(error).strip().splitlines() or [type(error).__name__])[-1], 80)
        raise UserError(f"--i3d: the network failed ({reason}); {_REMEDY}") from error


def fvd_features(
    load: Callable[[], Any], i3d: Path, device: str, videos: SideVideos
) -> NDArray[np.float64]:
    """The I3D features ``[N, 400]`` of one side's videos, kept by their content.

    Args:
        load: Loads the network, once a video has to be looked at.
        i3d: The network's file.
        device: The network's device.
        videos: The videos.
    """

    def measure(index: int) -> list[float]:
        file = videos.files[index]
        frames, _ = frames_of(file)
        if len(frames) < LEAST_FRAMES:
            raise UserError(
                f"{file}: has {len(frames)} frames, and FVD needs {LEAST_FRAMES} or more; leave "
                "out --i3d"
            )
        return [float(value) for value in i3d_features(load(), frames, device)]

    name, label = f"{videos.side}_i3d", f"I3D features of {videos.side}"
    rows = videos.measured(name, measure, label, f"i3d 1, {content_hash(i3d)}")
    return np.array(rows, np.float64)
