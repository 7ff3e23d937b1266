"""The provenance of a video: weights, adapters, options, prompt, version. A sidecar says it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infer.batch.requests import Request
from infer.checks import Checked
from infer.engine_plan import torch_dtype
from infer.options import Options
from lightx2v_sgmd import __version__
from lightx2v_sgmd.files.images import check_image
from lightx2v_sgmd.outputs import content_hashes
from lightx2v_sgmd.system.errors import UserError


class Provenance:
    """The provenance of the videos of one call, as their sidecars say it.

    Args:
        checked: The weights.
        options: The options that were asked for.
        dtype: The transformer's precision.
        text_dtype: The text encoder's.
    """

    def __init__(
        self, checked: Checked, options: Options, dtype: torch.dtype, text_dtype: torch.dtype
    ) -> None:
        self._trained_fps = checked.fps
        self._weights = _Weights(checked, options)
        self._common = {
            "timesteps": checked.schedule.to_dict()["timesteps"],
            "dtype": _name(dtype),
            "text_dtype": _name(text_dtype),
            "vae_dtype": _name(torch_dtype(options.vae_dtype)),
            "quantize": options.quantize,
            "attention": options.attention,
            "tile_vae": options.tile_vae,
            "merge_lora": options.merge_lora,
            "lora_strengths": [lora.strength for lora in options.loras],
            "version": __version__,
        }

    def fps(self, asked: float | None) -> float:
        """Frames per second: as asked for, else as trained."""
        return asked or self._trained_fps

    def start(self) -> None:
        """Begins to hash the weights beside other work; ``of`` waits for it."""
        self._weights.start()

    def of(self, request: Request, fps: float) -> dict[str, Any]:
        """The content of a video's sidecar.

        Raises:
            UserError: the weights have changed since they were first looked at, or the image is
                not there any more.
        """
        height, width, num_frames = request.size
        image = {} if request.image is None else {"image_sha256": check_image(request.image)}
        return {
            "prompt": request.prompt,
            **image,
            "seed": request.seed,
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "fps": fps,
            **self._common,
            "weights": self._weights.digest(),
        }


class _Weights:
    """The hash of all that is loaded: transformer, VAE, text encoder, tokenizer, adapters."""

    def __init__(self, checked: Checked, options: Options) -> None:
        model = checked.model
        parts = model.image_encoder_parts
        self._configs = [
            model.transformer_config,
            model.vae_config,
            model.full_text_encoder_config(),
        ]
        self._files = [
            *model.source.files("transformer"),
            *model.source.files("vae"),
            *(model.source.files("image_encoder") if "image_encoder" in parts else []),
            *model.text_encoder_files(),
            *(lora.path for lora in options.loras),
        ]
        self._before = _stamps(self._files)
        self._digest: str | None = None
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._hash, name="hash weights", daemon=True)
            self._thread.start()

    def digest(self) -> str:
        self.start()
        assert self._thread is not None
        self._thread.join()
        if self._error is not None or self._digest is None or _stamps(self._files) != self._before:
            raise UserError(
                f"weights: {self._files[0].parent} changed while it was in use, so nobody can say "
                "what the videos were made from; run the same command again"
            )
        return self._digest

    def _hash(self) -> None:
        try:
            hashes = content_hashes(self._files)
        except OSError as error:
            self._error = error
            return
        said = json.dumps([self._configs, hashes], sort_keys=True, default=str)
        self._digest = hashlib.sha256(said.encode()).hexdigest()


def _stamps(files: Sequence[Path]) -> list[tuple[int, ...] | None]:
    states: list[tuple[int, ...] | None] = []
    for file in files:
        try:
            about = file.stat()
            states.append((about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))
        except OSError:
            states.append(None)
    return states


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
