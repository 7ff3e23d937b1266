"""Encodes the images that videos start from, once for each image and size, and caches the result.

    CACHE/images_<encoder>/<sha256 of the image file>_<height>x<width>x<frames>.safetensors

``<encoder>`` is a fingerprint of the weights and settings that decide what becomes of an image. A
file appears by rename; several processes and jobs may share the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, overload

from safetensors import SafetensorError
from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.size_rules import Size
from lightx2v_sgmd.files.images import check_image, read_image
from lightx2v_sgmd.files.tensors.safetensors_files import open_tensors
from lightx2v_sgmd.files.tensors.safetensors_writer import write_tensors
from lightx2v_sgmd.outputs import appearing
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.console import progress
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest

MOST_IN_MEMORY: Final = 64
"""Most images whose tensors are kept without a cache: one takes some 10 MB at 480p."""


def encode_images(
    model: Model,
    images: Sequence[tuple[Path, Size] | None],
    ranks: Ranks,
    cache: Path | None,
    quiet: bool = True,
    setting: str = "data.embeddings",
) -> list[ImageTensors]:
    """Encodes each image for the model's networks, to the CPU; the encoder is freed.

    Args:
        model: The model.
        images: An image file with the size of its video, or None for a video without one.
        ranks: The processes; they share the work.
        cache: The folder of the cache; None keeps all in memory.
        quiet: No progress bar.
        setting: The name of the setting of ``cache``, for the message.

    Raises:
        UserError: an image cannot be read, or there are too many to keep in memory.
    """
    keys = [None if each is None else (check_image(each[0]), each[1]) for each in images]
    wanted = {key: images[index] for index, key in enumerate(keys) if key is not None}
    if cache is None and len(wanted) > MOST_IN_MEMORY:
        raise UserError(
            f"{setting}: is not set, and the prompts have {len(wanted)} images; name a folder for "
            f"what is computed once for each (more than {MOST_IN_MEMORY} are not kept in memory)"
        )
    folder = None
    if cache is not None and wanted:
        folder = cache / f"images_{ranks.once(lambda: images_identity(model))}"
    own = list(wanted)[ranks.rank :: ranks.size]
    missing = [key for key in own if folder is None or not _is_whole(_file(folder, key))]
    made: dict[tuple[str, Size], dict[str, Tensor]] = {}
    if missing:
        encoder = model.load_image_encoder(ranks.device)
        with progress(len(missing), "encoding images", quiet or not ranks.first) as bar:
            for key in missing:
                image = wanted[key]
                assert image is not None
                tensors = encoder.encode(read_image(image[0]), image[1])
                if folder is None:
                    made[key] = tensors
                else:
                    with appearing(_file(folder, key), suffix=".safetensors") as temporary:
                        write_tensors(temporary, tensors, {})
                bar.advance(1)
    made = {key: each for part in ranks.gather(made) for key, each in part.items()}
    return [
        ImageTensors(None if key is None else made[key] if folder is None else _file(folder, key))
        for key in keys
    ]


class ImageTensors:
    """The tensors of one image by name: in memory, in a file, or none."""

    def __init__(self, held: Mapping[str, Tensor] | Path | None) -> None:
        self._held = held

    def read(self) -> Mapping[str, Tensor]:
        """The tensors; empty for a video without an image."""
        if self._held is None:
            return {}
        return _read(self._held) if isinstance(self._held, Path) else self._held


class EmbeddingsWithImages(Sequence[Embedding]):
    """Embeddings of prompts, each with what was made of its image; read when it is asked for.

    Args:
        rows: The prompts' embeddings.
        images: The result of ``encode_images`` for each.
    """

    def __init__(self, rows: Sequence[Embedding], images: Sequence[ImageTensors]) -> None:
        assert len(rows) == len(images), "each prompt has an image or none"
        self._rows, self._images = rows, images

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Embedding: ...

    @overload
    def __getitem__(self, index: slice) -> EmbeddingsWithImages: ...

    def __getitem__(self, index: int | slice) -> Embedding | EmbeddingsWithImages:
        if isinstance(index, slice):
            return EmbeddingsWithImages(self._rows[index], self._images[index])
        return self._rows[index].with_image(self._images[index].read())


def images_identity(model: Model) -> str:
    """A name for what decides what becomes of an image: weights and settings."""
    parts = model.image_encoder_parts
    digest = hashlib.sha256(weights_digest(model, *parts).encode())
    digest.update(json.dumps([model.vae_config, model.takes_image], sort_keys=True).encode())
    if "image_encoder" in parts:
        digest.update(json.dumps(model.source.config("image_encoder"), sort_keys=True).encode())
        for file in sorted(model.source.image_processor().glob("*.json")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


def _file(folder: Path, key: tuple[str, Size]) -> Path:
    content, size = key
    return folder / f"{content}_{'x'.join(map(str, size))}.safetensors"


def _is_whole(file: Path) -> bool:
    try:
        return bool(_read(file))
    except (OSError, SafetensorError, UserError):
        return False


def _read(file: Path) -> dict[str, Tensor]:
    with open_tensors(file) as saved:
        return {name: saved.get_tensor(name) for name in saved.keys()}
